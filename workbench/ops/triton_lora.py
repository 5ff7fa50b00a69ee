"""LoRA on Triton kernels: `lora_shrink`, then `lora_expand`, over a batch of mixed adapters.

Grids follow from the batch's size, the variants' table and a bound on its tiles, so that a pass can
be captured in a CUDA graph. Called by the Triton backend.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from workbench.lora_batch import LoRABatch, LoRAGain, LoRAWeights


def add_lora(
    run: Callable[..., Any],
    num_sms: int,
    out: Tensor,
    x: Tensor,
    weights: LoRAWeights,
    batch: LoRABatch,
) -> Tensor:
    """Add to out [T, outputs], in place, what each token's variant makes of x [T, inputs].

    run(kernel, dtype, **inputs): launches a kernel by name.
    """
    table, tiles = batch.table, batch.tiles
    if not tiles.num_used:
        return out
    width, (_, parts, num_inputs) = table.rows.shape[1], weights.a.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    splits = _splits(tiles.num_used, parts, width, num_inputs, num_sms)
    shape = splits, len(tiles.order), parts, width
    inner = torch.empty(shape, dtype=torch.float32, device=x.device)
    which = {
        "rows": table.rows,
        "ranks": table.ranks,
        "order": tiles.order,
        "tiles": tiles.tiles[: tiles.num_used],
        "tile": tiles.size,
    }
    run("lora_shrink", x.dtype, x=x, a=weights.a, inner=inner, **which)
    factors = {"scales": table.scales, "shifts": table.shifts, "starts": weights.starts}
    given = {"inner": inner, "b": weights.b, "y": out, "bounds": weights.bounds}
    run("lora_expand", x.dtype, **given, **factors, **which)
    return out


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
