"""LoRA and DoRA on the C kernels of `kernels/cpu/lora.c`, over a batch of mixed adapters.

Called by the native backend, which has seen to dtypes, with C's function or what writes its calls
down.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.lora_batch import LoRABatch, LoRAGain, LoRAWeights, Tiles
from workbench.ops.calls import check


def add_lora(
    call: Callable[..., int], out: Tensor, x: Tensor, weights: LoRAWeights, batch: LoRABatch
) -> Tensor:
    """Add to out [T, outputs], in place, what each token's variant makes of x [T, inputs]."""
    table, (order, tiles, *_) = batch.table, batch.tiles
    x = x if x.stride(1) == 1 else x.contiguous()
    pointers = x, weights.a, weights.b, out, weights.starts
    failure = call(
        *(tensor.data_ptr() for tensor in (*pointers, *table[:4], order, tiles)),
        x.shape[0],  # no tile is without a token
        weights.a.shape[2],
        out.shape[1],
        weights.a.shape[1],
        table.rows.shape[1],
        x.stride(0),
        x.dtype is torch.bfloat16,
        torch.get_num_threads(),
    )
    check(failure)
    return out


def gain_lora(
    call: Callable[..., object], out: Tensor, gain: LoRAGain, rows: Tensor, tiles: Tiles
) -> Tensor:
    """Multiply out [T, outputs], in place, by the gain of each token's variant, if it has one.

    rows [V] int32: of each variant in `gain`, negative for none.
    """
    factors, shift = gain
    call(
        out.data_ptr(),
        factors.data_ptr(),
        None if shift is None else shift.data_ptr(),
        *(tensor.data_ptr() for tensor in (rows, tiles.order, tiles.tiles)),
        out.shape[0],  # no tile is without a token
        out.shape[1],
        out.dtype is torch.bfloat16,
        torch.get_num_threads(),
    )
    return out
