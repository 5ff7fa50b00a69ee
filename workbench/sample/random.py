"""Random numbers without state: one uniform for each (seed, output index), and the draw it decides.

Called by `Sampler`. A number is an integer hash of its two arguments, so it is the same on CPU and
GPU, in any batch, and after a preemption or a restart. No `torch.Generator` is read or advanced.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """Return the int64 with the low 64 bits of `value`."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


# splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)


def stream_keys(seeds: list[int]) -> Tensor:
    """Return one int64 key for each seed (any whole number; the low 64 bits count), on the CPU."""
    return _mix(torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64) + GOLDEN)


def uniforms(keys: Tensor, indices: Tensor) -> Tensor:
    """Return float64 numbers in [0, 1), each a function of its key and its output index alone.

    keys, indices: int64 of equal shape, on any device; keys come from `stream_keys`. Each key
    starts its own splitmix64 sequence at a hashed place, and `indices` counts along it.
    """
    bits = _mix(keys + (indices + 1) * GOLDEN)
    return _shift_right(bits, 11).to(torch.float64) * 2.0**-53


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return the column that each row's uniform falls on, [R] int64.

    weights: [R, W] int64, none negative, each row's sum in 1 … 2^63 - 1. uniform: [R] float64 in
    [0, 1). Sums of integers are exact in any order, so the column does not depend on how a device
    adds; it never has weight zero.
    """
    cumulative = weights.cumsum(dim=1)
    total = cumulative[:, -1:]
    # The product may round up to the total itself when the uniform is close to 1.
    target = torch.minimum((uniform[:, None] * total).to(torch.int64), total - 1)
    column = torch.searchsorted(cumulative, target, right=True)[:, 0]
    # Only a row of no weight at all gets here from outside; the sampler reports it.
    return column.clamp_(max=weights.shape[1] - 1)


def _mix(x: Tensor) -> Tensor:
    """Return splitmix64's finaliser of int64 `x`: every output bit depends on every input bit."""
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Return the logical shift; torch's `>>` copies the sign into the upper bits."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
