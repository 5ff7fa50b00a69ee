"""`LoRABatch`: which adapters the tokens of a batch go through, as layers and backends see it.

An adapter of rank r takes r *rank rows*: a row holds, for every layer, one vector that an input is
multiplied with and one that it adds to the output. A *variant* is what a request asks for: some
rank rows, each with a scale, so that a scaled adapter and a combination of several are variants
like any other. Built by `workbench.lora`, carried by `ForwardContext.lora`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NO_VARIANT = -1
_TILE, _WIDE_TILE = 16, 64  # tokens of one variant that a kernel takes at once: of few, of many
_FEW, _MANY = 2, 64  # tokens of a variant, on average


class LoRAWeights(NamedTuple):
    """What R rank rows hold for one layer whose outputs are P parts (q, k and v of one matrix).

    a [R, P, inputs] and b [R, outputs]; part p are the outputs bounds[p] : bounds[p + 1], which
    `starts` [P + 1] int32 says on the device.
    """

    a: Tensor
    b: Tensor
    bounds: tuple[int, ...]
    starts: Tensor


class LoRATable(NamedTuple):
    """The variants: v goes through rank rows rows[v, : ranks[v]].

    rows [V, W] int32, ranks [V] int32. A row adds (scales[v, i] * (a · x) + shifts[v, i]) * b;
    scales and shifts [V, W] float32. `widths` are the ranks as the host knows them.
    """

    rows: Tensor
    scales: Tensor
    shifts: Tensor
    ranks: Tensor
    widths: list[int]

    @property
    def width(self) -> int:
        """How many rank rows a variant may have."""
        return int(self.rows.shape[1])


class LoRAGain(NamedTuple):
    """What DoRA multiplies a layer's outputs with, adapter included, and adds to them then.

    gain [G, outputs] float32; shift likewise, None where the layer has no bias.
    """

    gain: Tensor
    shift: Tensor | None


class LoRAGains(NamedTuple):
    """Gains by layer, and the row that a variant has in each: rows [V] int32, negative for one that
    has none. `places` are these as the host knows them."""

    layers: Mapping[nn.Module, LoRAGain]
    rows: Tensor
    places: list[int]


class LoRAGroup(NamedTuple):
    """The packed positions [n] int64 of all tokens of a variant, and its number of rank rows."""

    variant: int
    rank: int
    positions: Tensor


class Tiles(NamedTuple):
    """Tokens by variant, for kernels: order [T] int32 holds the positions of adapted tokens, those
    of a variant side by side; tiles [T, 3] int32 are (variant, first place in order, number), of at
    most `size` tokens each, and (0, 0, 0) where there are no more. `count`: as many or more."""

    order: Tensor
    tiles: Tensor
    size: int
    num_used: int


class LoRABackend(Protocol):
    """The part of a backend (`workbench.batch.Backend`) that adapters need."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b [..., out] for x [..., in], weight [out, in] and bias [out]."""

    def prepare_lora(self, batch: LoRABatch) -> Any:
        """Return what `add_lora` needs once per step; kept in `batch.prepared`."""

    def start_lora(self, x: Tensor, weights: LoRAWeights, batch: LoRABatch) -> Any:
        """Begin what needs x [T, inputs] alone, beside what follows; `add_lora` takes the result
        and must be called."""

    def add_lora(
        self, out: Tensor, x: Tensor, weights: LoRAWeights, batch: LoRABatch, started: Any = None
    ) -> Tensor:
        """Return out [T, outputs] plus what each token's variant makes of x [T, inputs].

        May write to `out`. Tokens of no variant keep every bit. started: what `start_lora` returned
        for the same arguments, if it was called.
        """

    def gain_lora(self, out: Tensor, gain: LoRAGain, batch: LoRABatch) -> Tensor:
        """Return out [T, outputs] times the gain of each token's variant, plus its shift.

        May write to `out`. Tokens of no variant, or of one without a gain, keep every bit.
        """


@dataclass(slots=True)
class LoRABatch:
    """The adapters of one batch of T tokens.

    weights: by layer, for those that any adapter changes. replaced: by layer and variant, a whole
    matrix in the layer's place. variants: each token's, `NO_VARIANT` for none. embeds: whether any
    of these changes the embedding. replayed: whether passes over it are captured and replayed.
    prepared: what the backend needs once a step. gains: what DoRA adapters multiply with, None
    where there are none.
    """

    weights: Mapping[nn.Module, LoRAWeights]
    table: LoRATable
    variants: Sequence[int]
    tiles: Tiles
    replaced: Mapping[nn.Module, Mapping[int, Tensor]] = field(default_factory=dict)
    embeds: bool = False
    replayed: bool = False
    prepared: Any = None
    gains: LoRAGains | None = None
    _groups: list[LoRAGroup] | None = None

    def refill(
        self, variants: Sequence[int], replaced: Mapping[nn.Module, Mapping[int, Tensor]]
    ) -> None:
        """Take other tokens, whose tiles have been written to where these were."""
        self.variants, self.replaced, self._groups = variants, replaced, None

    @property
    def groups(self) -> list[LoRAGroup]:
        """The tokens of each variant, for backends that take one variant after the other."""
        if self._groups is None:
            self._groups = self._grouped()
        return self._groups

    def _grouped(self) -> list[LoRAGroup]:
        import torch

        variants = np.asarray(self.variants)
        device, widths = self.tiles.order.device, self.table.widths
        return [
            LoRAGroup(v, widths[v], torch.from_numpy(np.flatnonzero(variants == v)).to(device))
            for v in np.unique(variants[variants != NO_VARIANT]).tolist()
        ]

    def linear(self, layer: nn.Linear, x: Tensor, backend: LoRABackend) -> Tensor:
        """Return a linear layer's outputs for x [T, inputs] with what adapters change."""
        weights = self.weights.get(layer)
        started = None if weights is None else backend.start_lora(x, weights, self)
        out = backend.linear(x, layer.weight, layer.bias)
        for group in self.groups if layer in self.replaced else ():
            weight = self.replaced[layer].get(group.variant)
            if weight is not None:
                rows = backend.linear(x.index_select(0, group.positions), weight)
                out = out.index_copy(0, group.positions, rows)
        if weights is not None:
            out = backend.add_lora(out, x, weights, self, started)
        gain = self._gain(layer)
        return out if gain is None else backend.gain_lora(out, gain, self)

    def embed(self, layer: nn.Module, token_ids: Tensor, out: Tensor) -> Tensor:
        """Return an embedding's rows out [T, hidden] of token_ids [T] with what adapters change."""
        weights, replaced = self.weights.get(layer), self.replaced.get(layer, {})
        gain = self._gain(layer)
        for group in self.groups if self.embeds else ():
            ids, rows = token_ids[group.positions], out[group.positions]
            if group.variant in replaced:
                rows = replaced[group.variant][ids].to(out.dtype)
            if weights is not None:
                kept, scales, shifts = self.rank_rows(group)
                inner = weights.a[kept, 0][:, ids].float() * scales[:, None] + shifts[:, None]
                added = rows.float() + inner.T @ weights.b[kept].float()
                rows = self.gained(group, gain, added).to(out.dtype)
            out = out.index_copy(0, group.positions, rows)
        return out

    def _gain(self, layer: nn.Module) -> LoRAGain | None:
        return None if self.gains is None else self.gains.layers.get(layer)

    def gained(self, group: LoRAGroup, gain: LoRAGain | None, out: Tensor) -> Tensor:
        """Return a group's outputs [n, outputs] with the gain of its variant, if it has one."""
        place = -1 if self.gains is None or gain is None else self.gains.places[group.variant]
        if gain is None or place < 0:
            return out
        out = out * gain.gain[place]
        return out if gain.shift is None else out + gain.shift[place]

    def rank_rows(self, group: LoRAGroup) -> tuple[Tensor, Tensor, Tensor]:
        """Return a group's rank rows [r], their scales [r] and their shifts [r]."""
        v, rank, table = group.variant, group.rank, self.table
        return table.rows[v, :rank].long(), table.scales[v, :rank], table.shifts[v, :rank]

    def at(self, positions: Sequence[int], backend: LoRABackend) -> LoRABatch:
        """Return the adapters of the tokens at these packed positions alone."""
        variants = [self.variants[position] for position in positions]
        tiles = make_tiles(variants, self.tiles.order.device)
        batch = LoRABatch(self.weights, self.table, variants, tiles, self.replaced)
        batch.gains = self.gains
        batch.prepared = backend.prepare_lora(batch)
        return batch


def tile_size(variants: Sequence[int], device: torch.device) -> int:
    """Return how many tokens of a variant are best taken at once: on a GPU by how many it has,
    where a token alone is multiplied without tensor cores."""
    adapted = [variant for variant in variants if variant != NO_VARIANT]
    if device.type == "cpu" or not adapted:
        return _TILE
    mean = len(adapted) / len(set(adapted))
    return 1 if mean < _FEW else _TILE if mean < _MANY else _WIDE_TILE


def tile_numbers(
    variants: Sequence[int], size: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]:
    """Return the order and the tiles of `Tiles` for each token's variant, as arrays of int32 on the
    host, and how many tiles have tokens."""
    given = np.asarray(variants, dtype=np.int32)
    order, tiles = np.zeros(len(given), np.int32), np.zeros((len(given), 3), np.int32)
    by_variant = np.argsort(given, kind="stable")
    by_variant = by_variant[given[by_variant] != NO_VARIANT]
    order[: len(by_variant)] = by_variant
    found, begins, counts = np.unique(given[by_variant], return_index=True, return_counts=True)
    place = 0
    for variant, begin, count in zip(found, begins, counts, strict=True):
        firsts = np.arange(begin, begin + count, size, dtype=np.int32)
        chosen = slice(place, place + len(firsts))
        tiles[chosen, 0], tiles[chosen, 1] = variant, firsts
        tiles[chosen, 2] = np.minimum(size, begin + count - firsts)
        place += len(firsts)
    return order, tiles, place


def make_tiles(variants: Sequence[int], device: torch.device) -> Tiles:
    """Return the tokens by variant, on a device."""
    import torch

    size = tile_size(variants, device)
    order, tiles, count = tile_numbers(variants, size)
    packed = torch.from_numpy(np.concatenate((order, tiles.ravel())))
    if device.type == "cuda":  # else the copy may wait for the passes that are queued
        packed = packed.pin_memory()
    moved = packed.to(device, non_blocking=True)
    return Tiles(moved[: len(order)], moved[len(order) :].view(-1, 3), size, count)
