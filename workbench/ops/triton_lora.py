"""LoRA on Triton kernels: `lora_shrink`, then `lora_expand`, over a batch of mixed adapters.

Grids follow from the batch's size, the variants' table and a bound on its tiles, so that a pass can
be captured in a CUDA graph. Both kernels start while what is before them ends (`kernels.early`) and
read their rank rows meanwhile. Called by the Triton backend.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.lora_batch import LoRABatch, LoRAGain, LoRAWeights

LoRAOrder = Literal["early", "ahead", "beside", "plain"]
"""Where the first kernel, which needs the inputs alone, is launched: after the base product; before
it; or beside it on a second stream. "plain": after it, and no kernel starts before all others have
ended, which is the oracle."""

_FEW = 4  # tiles


class LoRAKernels:
    """Launches both kernels. run(kernel, dtype, **inputs): launches one by name. order: None takes
    what was fastest on an H200 for such a batch."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run
        self.order: LoRAOrder | None = None
        self._sides: dict[int, torch.cuda.Stream] = {}

    def _order(self, batch: LoRABatch, device: torch.device) -> LoRAOrder:
        """Return how a batch is launched: kernel by kernel, a second stream costs the host's time;
        a token alone waits least with A x before the base product, many tokens of few variants with
        A x beside it, and where adapters' bytes count nothing beats reading them ahead."""
        tiles = batch.tiles
        best: LoRAOrder = "early" if tiles.num_used > _FEW else "ahead"
        if tiles.size > 1 and best == "ahead":
            best = "beside"
        order = self.order or best
        able = batch.replayed and device.type == "cuda"
        return "early" if order == "beside" and not able else order

    def start(self, x: Tensor, weights: LoRAWeights, batch: LoRABatch) -> Tensor | None:
        """Begin A x [splits, T, parts, width] for x [T, inputs], if that is not done afterwards."""
        order = self._order(batch, x.device)
        if not batch.tiles.num_used or order in ("early", "plain"):
            return None
        if order == "ahead":
            return self._shrink(x, weights, batch, joins=False)
        inner, current = self._inner(x, weights, batch), torch.cuda.current_stream(x.device)
        side = self._side(current)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            return self._shrink(x, weights, batch, joins=True, inner=inner)

    def finish(
        self,
        out: Tensor,
        x: Tensor,
        weights: LoRAWeights,
        batch: LoRABatch,
        started: Tensor | None,
    ) -> Tensor:
        """Add to out [T, outputs], in place, what each token's variant makes of x [T, inputs]."""
        table, tiles = batch.table, batch.tiles
        if not tiles.num_used:
            return out
        joins = self.order == "plain"
        if started is None:
            started = self._shrink(x, weights, batch, joins=joins)
        elif self._order(batch, x.device) == "beside":
            joins, current = True, torch.cuda.current_stream(x.device)
            current.wait_stream(self._side(current))
        factors = {"scales": table.scales, "shifts": table.shifts, "starts": weights.starts}
        given = {"inner": started, "b": weights.b, "y": out, "bounds": weights.bounds}
        self.run("lora_expand", x.dtype, **given, **factors, **_tokens(batch), joins=joins)
        return out

    def _shrink(
        self,
        x: Tensor,
        weights: LoRAWeights,
        batch: LoRABatch,
        *,
        joins: bool,
        inner: Tensor | None = None,
    ) -> Tensor:
        x = x if x.stride(1) == 1 else x.contiguous()
        inner = self._inner(x, weights, batch) if inner is None else inner
        given = {"x": x, "a": weights.a, "inner": inner}
        self.run("lora_shrink", x.dtype, **given, **_tokens(batch), joins=joins)
        return inner

    def _inner(self, x: Tensor, weights: LoRAWeights, batch: LoRABatch) -> Tensor:
        tiles, width, (_, parts, num_inputs) = batch.tiles, batch.table.width, weights.a.shape
        splits = _splits(tiles.size, num_inputs)
        shape = splits, len(tiles.order), parts, width
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    def _side(self, stream: torch.cuda.Stream) -> torch.cuda.Stream:
        """Return the stream beside one: each has its own, as one may be captured."""
        if stream.cuda_stream not in self._sides:
            made = torch.cuda.Stream(stream.device)  # type: ignore[no-untyped-call]
            self._sides[stream.cuda_stream] = made
        return self._sides[stream.cuda_stream]


def _tokens(batch: LoRABatch) -> dict[str, Any]:
    """Return which tokens go through which rank rows, as both kernels take it."""
    table, tiles = batch.table, batch.tiles
    return {
        "rows": table.rows,
        "ranks": table.ranks,
        "order": tiles.order,
        "tiles": tiles.tiles[: tiles.num_used],
        "tile": tiles.size,
    }


def gain_lora(run: Callable[..., Any], out: Tensor, gain: LoRAGain, batch: LoRABatch) -> Tensor:
    """Multiply out [T, outputs], in place, by the gain of each token's variant, if it has one."""
    tiles, gains = batch.tiles, batch.gains
    if gains is not None and tiles.num_used:
        which = {"order": tiles.order, "tiles": tiles.tiles[: tiles.num_used], "tile": tiles.size}
        run("lora_gain", out.dtype, y=out, **gain._asdict(), places=gains.rows, **which)
    return out


@cache
def _splits(tile: int, num_inputs: int) -> int:
    from workbench.kernels.lora_shrink import choose_splits

    return choose_splits(tile, num_inputs)
