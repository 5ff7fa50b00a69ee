"""`RankPool`: the rank rows of a device, and which adapter has which.

A rank row holds one row of A and one column of B for every layer that any adapter changes; an
adapter of rank r takes any r free ones, so ranks mix without padding and nothing fragments. Scales
are multiplied into B when an adapter is written. The one writer of the rows' tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from workbench.lora.adapter import Adapter
from workbench.lora.targets import Target, bounds_of, dtype_of, targets_of
from workbench.lora_batch import LoRAWeights
from workbench.models import DecoderLM


class Resident(NamedTuple):
    """An adapter on the device: its rank rows, whether the last adds a constant, whether it changes
    the embedding, and the modules that stand whole in place of the model's, by layer."""

    rows: tuple[int, ...]
    constant: bool
    embeds: bool
    replaced: Mapping[nn.Module, Tensor]


class RankPool:
    """Up to `num_rows` rank rows beside a model; `generation` counts how often they have moved.

    A layer's tensors are made when the first adapter comes that changes it.
    """

    def __init__(self, model: DecoderLM, num_rows: int) -> None:
        self.model, self.num_rows, self.generation = model, num_rows, 0
        self.weights: dict[nn.Module, LoRAWeights] = {}
        self._free = list(range(num_rows - 1, -1, -1))

    @cached_property
    def targets(self) -> dict[str, Target]:
        """What adapters may change, by path; looked for when the first one comes."""
        return targets_of(self.model)

    @cached_property
    def _layers(self) -> dict[str, list[Target]]:
        layers: dict[str, list[Target]] = {}
        for target in self.targets.values():
            layers.setdefault(target.layer, []).append(target)
        return layers

    @property
    def num_free(self) -> int:
        """Rank rows that no adapter has."""
        return len(self._free)

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows' tensors."""
        return sum(w.a.nbytes + w.b.nbytes for w in self.weights.values())

    def bytes_per_row(self, layers: Iterable[str] | None = None) -> int:
        """Return what a rank row takes in bytes, in these layers (None: all linear ones)."""
        size = dtype_of(self.model).itemsize
        if layers is None:
            layers = [n for n, ts in self._layers.items() if not ts[0].is_embedding | ts[0].is_head]
        return size * sum(self._numbers(layer) for layer in layers)

    def _numbers(self, layer: str) -> int:
        bounds, first = bounds_of(self.targets, layer), self._layers[layer][0]
        return first.num_read * (len(bounds) - 1) + bounds[-1]

    def grow(self, num_rows: int) -> None:
        """Have at least this many rows; what is in them is kept."""
        if num_rows <= self.num_rows:
            return
        self._free[:0] = range(num_rows - 1, self.num_rows - 1, -1)
        for layer, old in self.weights.items():
            a, b = (self._larger(tensor, num_rows) for tensor in (old.a, old.b))
            self.weights[layer] = LoRAWeights(a, b, old.bounds, old.starts)
        self.num_rows, self.generation = num_rows, self.generation + 1

    @staticmethod
    def _larger(tensor: Tensor, num_rows: int) -> Tensor:
        larger = tensor.new_zeros(num_rows, *tensor.shape[1:])
        larger[: len(tensor)] = tensor
        return larger

    def put(self, adapter: Adapter) -> Resident:
        """Write an adapter into free rows, of which there must be enough."""
        rows = tuple(self._free.pop() for _ in range(adapter.rank))
        index = torch.tensor(rows, device=self.model.device)
        for name, targets in self._layers.items():
            layer = self.model.get_submodule(name)
            touched = [t for t in targets if t.path in adapter.pairs or t.path in adapter.biases]
            if touched and layer not in self.weights:
                self.weights[layer] = self._make(name)
                self.generation += 1
            if layer in self.weights and rows:
                self._write(self.weights[layer], index, adapter, touched)
        embeds = any(pair.of_embedding for pair in adapter.pairs.values())
        return Resident(rows, adapter.adds_constants, embeds, self._replaced(adapter))

    def free(self, resident: Resident) -> None:
        """Take an adapter's rows back."""
        self._free.extend(reversed(resident.rows))

    def _make(self, name: str) -> LoRAWeights:
        bounds, first = bounds_of(self.targets, name), self._layers[name][0]
        dtype, device = dtype_of(self.model), self.model.device
        a_shape = self.num_rows, len(bounds) - 1, first.num_read
        a = torch.zeros(a_shape, dtype=dtype, device=device)
        b = torch.zeros((self.num_rows, bounds[-1]), dtype=dtype, device=device)
        starts = torch.tensor(bounds, dtype=torch.int32, device=self.model.device)
        return LoRAWeights(a, b, bounds, starts)

    def _write(
        self, weights: LoRAWeights, index: Tensor, adapter: Adapter, targets: list[Target]
    ) -> None:
        weights.a[index], weights.b[index] = 0, 0
        for target in targets:
            pair = adapter.pairs.get(target.path)
            begin = 0 if target.is_embedding else target.rows.start
            span = slice(begin, begin + target.num_added)
            if pair is not None:
                rows = index[: pair.rank]
                a, b = (tensor.to(weights.a.device) for tensor in (pair.a, pair.b))
                for part in range(len(weights.bounds) - 1):
                    if span.start <= weights.bounds[part] < span.stop:
                        weights.a[rows, part] = a.to(weights.a.dtype)
                weights.b[rows, span] = (pair.scale * b.float().T).to(weights.b.dtype)
            constant = self._constant(adapter, target)
            if constant is not None:
                weights.b[index[-1], span] = constant.to(weights.b)

    def _constant(self, adapter: Adapter, target: Target) -> Tensor | None:
        """Return what an adapter adds to a module's outputs whatever the input [outputs]."""
        pair, bias = adapter.pairs.get(target.path), adapter.biases.get(target.path)
        added = None
        if pair is not None and pair.bias is not None:
            added = pair.scale * pair.bias.float()
        if bias is not None:
            own = self.model.get_parameter(f"{target.layer}.bias")[target.rows].float()
            change = bias.float().to(own.device) - own
            added = change if added is None else added.to(own.device) + change
        return added

    def _replaced(self, adapter: Adapter) -> dict[nn.Module, Tensor]:
        return {
            self.model.get_submodule(self.targets[path].layer): tensor.to(
                dtype=dtype_of(self.model), device=self.model.device
            )
            for path, tensor in adapter.saved.items()
        }
