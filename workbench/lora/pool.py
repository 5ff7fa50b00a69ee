"""`RankPool`: the rank rows of a device, and which adapter has which.

A rank row holds one row of A and one column of B for every layer that any adapter changes; an
adapter of rank r takes any r free ones, so ranks mix without padding and nothing fragments. The one
writer of the rows' tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from workbench.lora.dora import RowLengths
from workbench.lora.packing import Packed, Packer
from workbench.lora.targets import dtype_of
from workbench.lora_batch import LoRAWeights


class Resident(NamedTuple):
    """An adapter on the device: its rank rows, whether the last adds a constant, and whether it
    changes the embedding. By layer: modules that stand whole in place of the model's, and DoRA's
    lengths of rows."""

    rows: tuple[int, ...]
    constant: bool
    embeds: bool
    replaced: Mapping[nn.Module, Tensor]
    lengths: Mapping[nn.Module, RowLengths]


Layers = tuple[tuple[LoRAWeights, int | None], ...]


class Place(NamedTuple):
    """Where an adapter goes on the device: its rank rows, and every layer's rows with the number of
    the layer in `packed`, or None where they are to hold nothing."""

    packed: Packed
    rows: tuple[int, ...]
    layers: Layers


class RankPool:
    """Up to `num_rows` rank rows beside a model; `generation` counts how often they have moved.

    A layer's tensors are made when the first adapter comes that changes it.
    """

    def __init__(self, packer: Packer, num_rows: int) -> None:
        self.packer, self.num_rows, self.generation = packer, num_rows, 0
        self.model = packer.model
        self.weights: dict[nn.Module, LoRAWeights] = {}
        self._known: dict[tuple[str, ...], tuple[Layers, int]] = {}  # with the generation
        self._free = list(range(num_rows - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Rank rows that no adapter has."""
        return len(self._free)

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows' tensors."""
        return sum(w.a.nbytes + w.b.nbytes for w in self.weights.values())

    def grow(self, num_rows: int) -> None:
        """Have at least this many rows; what is in them is kept."""
        if num_rows <= self.num_rows:
            return
        self._free[:0] = range(num_rows - 1, self.num_rows - 1, -1)
        for layer, old in self.weights.items():
            a, b = (self._larger(tensor, num_rows) for tensor in (old.a, old.b))
            self.weights[layer] = LoRAWeights(a, b, old.bounds, old.starts)
        self._known.clear()
        self.num_rows, self.generation = num_rows, self.generation + 1

    def shrink(self, num_rows: int, residents: list[Resident]) -> list[Resident]:
        """Have fewer rows, which hold these adapters alone; return where they are then."""
        rows = [row for resident in residents for row in resident.rows]
        assert len(rows) <= num_rows, "there are fewer rows than that"
        index = torch.tensor(rows, dtype=torch.int64, device=self.model.device)
        for layer, old in self.weights.items():
            a, b = (self._gathered(tensor, index, num_rows) for tensor in (old.a, old.b))
            self.weights[layer] = LoRAWeights(a, b, old.bounds, old.starts)
        self._known.clear()
        self._free = list(range(num_rows - 1, len(rows) - 1, -1))
        self.num_rows, self.generation = num_rows, self.generation + 1
        moved, begin = [], 0
        for resident in residents:
            end = begin + len(resident.rows)
            moved.append(resident._replace(rows=tuple(range(begin, end))))
            begin = end
        return moved

    @staticmethod
    def _gathered(tensor: Tensor, index: Tensor, num_rows: int) -> Tensor:
        fewer = tensor.new_zeros(num_rows, *tensor.shape[1:])
        fewer[: len(index)] = tensor[index]
        return fewer

    @staticmethod
    def _larger(tensor: Tensor, num_rows: int) -> Tensor:
        larger = tensor.new_zeros(num_rows, *tensor.shape[1:])
        larger[: len(tensor)] = tensor
        return larger

    def put(self, packed: Packed) -> Resident:
        """Write an adapter into free rows, of which there must be enough."""
        return self.write(self.take(packed))

    def take(self, packed: Packed) -> Place:
        """Take free rows for an adapter, of which there must be enough, and leave them as they
        are."""
        rows = tuple(sorted(self._free.pop() for _ in range(packed.rank)))
        return Place(packed, rows, self._layers(packed.layers) if rows else ())

    def _layers(self, names: tuple[str, ...]) -> Layers:
        """Return every layer's rows, each with its number among `names`. Most adapters change the
        same layers, and steps wait for this: it is worked out once for each kind."""
        known, generation = self._known.get(names, ((), -1))
        if generation == self.generation:
            return known
        given = {self.model.get_submodule(name): number for number, name in enumerate(names)}
        for layer, number in given.items():
            if layer not in self.weights:
                self.weights[layer] = self._make(names[number])
                self.generation += 1
        found = tuple((weights, given.get(layer)) for layer, weights in self.weights.items())
        self._known[names] = found, self.generation
        return found

    @torch.inference_mode()
    def write(self, place: Place) -> Resident:
        """Write an adapter to its place, piece after piece, on the current stream; by any thread,
        as long as the pool neither grows nor shrinks."""
        packed, runs = place.packed, list(_runs(place.rows))
        empty: list[Tensor] = []
        into: dict[int, list[Tensor]] = {}
        for weights, number in place.layers:
            held = [rows[row : row + e - b] for rows in weights[:2] for b, e, row in runs]
            if number is None:  # what others left there
                empty += held
            else:
                into[number] = held
        if empty:
            torch._foreach_zero_(empty)
        for piece in packed.pieces if place.layers else ():
            # One copy over the bus, and few kernels that take it apart there, in place of a copy
            # for each layer's a and b. None of these calls holds Python's lock.
            there = piece.memory.to(self.model.device, non_blocking=True)
            numbers = range(piece.begin, piece.end)
            given = [_like(part, there) for number in numbers for part in packed.rows[number]]
            own = [part[begin:end] for part in given for begin, end, _ in runs]
            torch._foreach_copy_([tensor for number in numbers for tensor in into[number]], own)
        lengths = {self.model.get_submodule(name): its for name, its in packed.lengths.items()}
        replaced = self._replaced(packed)
        return Resident(place.rows, packed.constant, packed.embeds, replaced, lengths)

    def free(self, rows: tuple[int, ...]) -> None:
        """Take an adapter's rows back."""
        self._free.extend(reversed(rows))

    def _make(self, name: str) -> LoRAWeights:
        shape, device = self.packer.shapes[name], self.model.device
        a_shape = self.num_rows, shape.parts, shape.num_read
        a = torch.zeros(a_shape, dtype=dtype_of(self.model), device=device)
        b = torch.zeros((self.num_rows, shape.num_outputs), dtype=a.dtype, device=device)
        starts = torch.tensor(shape.bounds, dtype=torch.int32, device=device)
        return LoRAWeights(a, b, shape.bounds, starts)

    def _replaced(self, packed: Packed) -> dict[nn.Module, Tensor]:
        targets, device = self.packer.targets, self.model.device
        return {
            self.model.get_submodule(targets[path].layer): tensor.to(device)
            for path, tensor in packed.saved.items()
        }


def _runs(rows: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, end, row) of the places in `rows` that hold row, row + 1, and so on."""
    begin = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end] != rows[end - 1] + 1:
            yield begin, end, rows[begin]
            begin = end


def _like(part: Tensor, memory: Tensor) -> Tensor:
    """Return what a part of a piece is in a copy of the piece."""
    return memory.as_strided(part.size(), part.stride(), part.storage_offset())
