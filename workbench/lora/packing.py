"""`Packed`: an adapter as rank rows in host memory, ready to be copied to the device.

A layer's part is its rows of A for every part of its outputs, and its columns of B with the scale
multiplied in; what an adapter always adds is a rank row of its own. Made once when an adapter is
read, in a thread where that is one's; on a machine with CUDA in pinned memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from workbench.lora.adapter import Adapter
from workbench.lora.dora import RowLengths, plain_lengths, row_lengths
from workbench.lora.targets import Target, bounds_of, dtype_of, targets_of
from workbench.lora.threads import in_threads
from workbench.models import DecoderLM

_PIECE = 4 << 20  # bytes


class LayerShape(NamedTuple):
    """How large a rank row of a layer is: parts, numbers that each reads, and outputs' bounds."""

    parts: int
    num_read: int
    bounds: tuple[int, ...]

    @property
    def num_outputs(self) -> int:
        """How many numbers a rank row adds to."""
        return self.bounds[-1]

    @property
    def size(self) -> int:
        """How many numbers a rank row is."""
        return self.parts * self.num_read + self.num_outputs


class Piece(NamedTuple):
    """Memory [numbers] with the rows of the layers from `begin` to before `end`, one behind the
    other: it goes to a device in one go."""

    memory: Tensor
    begin: int
    end: int


class Packed(NamedTuple):
    """An adapter's rank rows: each layer's a [rank, parts, num_read] and b [rank, outputs], views
    of its pieces. constant: the last rank row adds whatever the input. saved: modules stored whole,
    by path. lengths: DoRA's, by layer."""

    rank: int
    constant: bool
    embeds: bool
    layers: tuple[str, ...]
    rows: tuple[tuple[Tensor, Tensor], ...]
    pieces: tuple[Piece, ...]
    saved: Mapping[str, Tensor]
    lengths: Mapping[str, RowLengths]

    @property
    def num_bytes(self) -> int:
        """Bytes in host memory."""
        whole = sum(tensor.nbytes for tensor in self.saved.values())
        own = sum(a.nbytes + b.nbytes for a, b in self.rows)
        return own + whole + sum(some.num_bytes for some in self.lengths.values())


class Packer:
    """Packs adapters for one model."""

    def __init__(self, model: DecoderLM) -> None:
        self.model = model
        self._packed: WeakKeyDictionary[Adapter, Packed] = WeakKeyDictionary()

    @cached_property
    def targets(self) -> dict[str, Target]:
        """What adapters may change, by path; looked for when the first one comes."""
        return targets_of(self.model)

    @cached_property
    def by_layer(self) -> dict[str, list[Target]]:
        """The same by layer."""
        layers: dict[str, list[Target]] = {}
        for target in self.targets.values():
            layers.setdefault(target.layer, []).append(target)
        return layers

    @cached_property
    def shapes(self) -> dict[str, LayerShape]:
        """The shape of a rank row, by layer."""
        shapes = {}
        for name, targets in self.by_layer.items():
            bounds = bounds_of(self.targets, name)
            shapes[name] = LayerShape(len(bounds) - 1, targets[0].num_read, bounds)
        return shapes

    def row_bytes(self) -> int:
        """Return what a rank row takes in bytes, over all linear layers but the head."""
        inner = (
            shape.size
            for name, shape in self.shapes.items()
            if not self.by_layer[name][0].is_embedding and not self.by_layer[name][0].is_head
        )
        return dtype_of(self.model).itemsize * sum(inner)

    def pack(self, adapter: Adapter) -> Packed:
        """Return an adapter's rank rows; under several names they are the same ones."""
        if adapter not in self._packed:
            self._packed[adapter] = self._pack(adapter)
        return self._packed[adapter]

    def _pack(self, adapter: Adapter) -> Packed:
        changed = [*adapter.pairs, *adapter.biases]
        layers = tuple(dict.fromkeys(self.targets[path].layer for path in changed))
        rank, dtype = adapter.rank, dtype_of(self.model)
        rows, pieces = self._make(rank, layers)

        def fill(number: int) -> None:
            self._fill(adapter, layers[number], *rows[number])

        in_threads(fill, range(len(layers)), sum(a.nbytes + b.nbytes for a, b in rows))
        embeds = any(pair.of_embedding for pair in adapter.pairs.values())
        # Copies, as what is read is a view of its whole file.
        saved = {path: tensor.to(dtype, copy=True) for path, tensor in adapter.saved.items()}
        lengths = self._lengths(adapter)
        return Packed(rank, adapter.adds_constants, embeds, layers, rows, pieces, saved, lengths)

    def _make(
        self, rank: int, layers: tuple[str, ...]
    ) -> tuple[tuple[tuple[Tensor, Tensor], ...], tuple[Piece, ...]]:
        """Return memory for the rank rows of each layer, as it comes, and its pieces.

        Pinned on a machine with CUDA, and in pieces, as nobody else can call CUDA while a piece is
        pinned.
        """
        pinned, dtype = self.model.device.type == "cuda", dtype_of(self.model)
        sizes = [rank * self.shapes[name].size for name in layers]
        found: list[tuple[Tensor, Tensor]] = []
        pieces: list[Piece] = []
        place, left = 0, torch.empty(0, dtype=dtype)
        for number, (name, size) in enumerate(zip(layers, sizes, strict=True)):
            if place + size > len(left):
                most = max(size, min(sum(sizes[number:]), _PIECE // dtype.itemsize))
                place, left = 0, torch.empty(most, dtype=dtype, pin_memory=pinned)
                pieces.append(Piece(left, number, number))
            shape = self.shapes[name]
            middle, end = place + rank * shape.parts * shape.num_read, place + size
            a = left[place:middle].view(rank, shape.parts, shape.num_read)
            found.append((a, left[middle:end].view(rank, shape.num_outputs)))
            place = end
            pieces[-1] = pieces[-1]._replace(end=number + 1)
        return tuple(found), tuple(pieces)

    def _lengths(self, adapter: Adapter) -> dict[str, RowLengths]:
        """Return the lengths of the rows of each layer that a DoRA adapter changes."""
        scaled = [path for path, pair in adapter.pairs.items() if pair.magnitude is not None]
        found: dict[str, RowLengths] = {}
        for path in scaled:
            target, pair = self.targets[path], adapter.pairs[path]
            whole = found.get(target.layer)
            if whole is None:
                whole = found[target.layer] = self._plain(target)
            weight = self.model.get_parameter(f"{target.layer}.weight")
            own = row_lengths(weight[target.rows], pair)
            for into, its in zip(whole[:4], own[:4], strict=True):
                into[self._span(target)] = its
            if whole.bias_change is not None and path in adapter.biases:
                whole.bias_change[target.rows] = self._bias_change(adapter, target)
        return found

    def _plain(self, target: Target) -> RowLengths:
        lengths = plain_lengths(self.shapes[target.layer].num_outputs)
        if not target.has_bias:
            return lengths
        bias = self.model.get_parameter(f"{target.layer}.bias").detach().float().cpu()
        return lengths._replace(bias=bias, bias_change=torch.zeros_like(bias))

    @staticmethod
    def _span(target: Target) -> slice:
        """Return which of its layer's outputs are a target's."""
        begin = 0 if target.is_embedding else target.rows.start
        return slice(begin, begin + target.num_added)

    def _fill(self, adapter: Adapter, layer: str, a: Tensor, b: Tensor) -> None:
        """Write a layer's rank rows."""
        targets = self.by_layer[layer]
        ranks = {adapter.pairs[t.path].rank for t in targets if t.path in adapter.pairs}
        if ranks != {adapter.rank} or not all(t.path in adapter.pairs for t in targets):
            a.zero_()
            b.zero_()
        for target in targets:
            self._fill_part(a, b, self.shapes[layer].bounds, adapter, target)

    def _fill_part(
        self, a: Tensor, b: Tensor, bounds: tuple[int, ...], adapter: Adapter, target: Target
    ) -> None:
        pair = adapter.pairs.get(target.path)
        span = self._span(target)
        if pair is not None:
            for part, bound in enumerate(bounds[:-1]):
                if span.start <= bound < span.stop:
                    a[: pair.rank, part] = pair.a
            _put_columns(b[: pair.rank, span], pair.b, pair.scale)
        constant = self._constant(adapter, target)
        if constant is not None:
            b[-1, span] = constant

    def _constant(self, adapter: Adapter, target: Target) -> Tensor | None:
        """Return what an adapter adds to a module's outputs whatever the input [outputs]."""
        pair, bias = adapter.pairs.get(target.path), adapter.biases.get(target.path)
        added = None
        if pair is not None and pair.bias is not None:
            added = pair.scale * pair.bias.float()
        if bias is not None:
            change = self._bias_change(adapter, target)
            added = change if added is None else added + change
        return added

    def _bias_change(self, adapter: Adapter, target: Target) -> Tensor:
        own = self.model.get_parameter(f"{target.layer}.bias")[target.rows].detach()
        return adapter.biases[target.path].float() - own.float().cpu()


def _put_columns(into: Tensor, columns: Tensor, scale: float) -> None:
    """Write the columns of a matrix, times a scale, to the rows of another one."""
    if columns.dtype != into.dtype:
        into.copy_((columns if scale == 1 else columns.float() * scale).T)
        return
    # NumPy turns matrices of few columns in half of torch's time; to it, numbers are bits.
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[into.element_size()]
    np.copyto(into.view(bits).numpy(), columns.view(bits).numpy().T)
    if scale != 1:
        into.mul_(scale)  # rounded once
