"""How an 8-bit KV cache keeps a head: its elements over a scale of its own, and that scale.

A token's head has one float32 scale for its key and one for its value: its largest magnitude over
the largest of the dtype. So what is kept depends on that token alone, whatever else is in its
block, in which chunk it came or who is in the batch. A cache is [..., blocks, block_size, K, D] and
its scales [..., blocks, K, block_size]: those of a head lie side by side in a block, and belong to
it wherever it is copied. Needs torch alone: for the torch backends and the cache, and for
references.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = {torch.int8: 127.0, FP8: 448.0}
QUANTISED = tuple(LARGEST)


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return x [..., D] as a cache of an 8-bit dtype keeps it, and the scales [...] float32."""
    largest, wide = LARGEST[dtype], x.float()
    scales = wide.abs().amax(-1) / largest
    scales = torch.where(scales > 0, scales, 1.0)
    # A quotient may be rounded to above the largest, which fp8 would take for NaN.
    wide = (wide / scales.unsqueeze(-1)).clamp(-largest, largest)
    return (torch.floor(wide + 0.5) if dtype == torch.int8 else wide).to(dtype), scales


def dequantised(kept: Tensor, scales: Tensor) -> Tensor:
    """Return blocks [..., block_size, K, D] times their scales [..., K, block_size], float32."""
    return kept.float() * scales.transpose(-1, -2).unsqueeze(-1)


def scale_shape(kv_shape: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
    """Return the shape of the scales of a cache of this shape."""
    *outer, block_size, kv_heads, _ = kv_shape
    return (*outer, kv_heads, block_size)
