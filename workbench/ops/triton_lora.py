"""LoRA on Triton kernels: `lora_shrink`, then `lora_expand`, over a batch of mixed adapters.

Grids follow from the batch's size, the variants' table and a bound on its tiles, so that a pass can
be captured in a CUDA graph. There the first kernel, which needs the inputs alone, runs on a second
stream beside the base product; a pass that is launched kernel by kernel has it in the same stream,
since the host's time is what counts there. Called by the Triton backend.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.lora_batch import LoRABatch, LoRAGain, LoRAWeights

LoRAOrder = Literal["beside", "early", "plain"]
"""How adapters' kernels are launched: the first beside the base product where a pass is replayed;
both after it, starting early; or both after it, each when all before has ended: the oracle."""


class LoRAKernels:
    """Launches both kernels. run(kernel, dtype, **inputs): launches one by name."""

    def __init__(self, run: Callable[..., Any], num_sms: int) -> None:
        self.run, self.num_sms = run, num_sms
        self.order: LoRAOrder = "beside"
        self._sides: dict[int, torch.cuda.Stream] = {}

    def start(self, x: Tensor, weights: LoRAWeights, batch: LoRABatch) -> Tensor | None:
        """Begin A x [splits, T, parts, width] for x [T, inputs], if it runs beside what follows."""
        if self.order != "beside" or not batch.replayed or not batch.tiles.num_used:
            return None
        if x.device.type != "cuda":
            return self._shrink(x, weights, batch, joins=True)
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
        joins = started is not None or self.order == "plain"
        if started is None:
            started = self._shrink(x, weights, batch, joins=joins)
        elif x.device.type == "cuda":
            current = torch.cuda.current_stream(x.device)
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
        splits = _splits(tiles.num_used, parts, width, num_inputs, self.num_sms)
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
def _splits(num_tiles: int, parts: int, width: int, num_inputs: int, num_sms: int) -> int:
    from workbench.kernels.lora_shrink import choose_splits

    return choose_splits(num_tiles, parts, width, num_inputs, num_sms)
