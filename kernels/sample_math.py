"""What the kernels of `sample` share: logits as penalties leave them, weights, keys and uniforms.

The arithmetic is that of `workbench.sample`, operation by operation, so that the integers are the
same ones.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

# Bins of the histogram that finds candidates: the last one holds what has no weight, and all else
# that lies more than 28 below the peak in units of the temperature.
NUM_BINS = 256
_BINS_PER_UNIT = tl.constexpr(9.0)
_ONE = tl.constexpr(1099511627776.0)  # `workbench.sample.filters.ONE`: the likeliest token's weight
_ID_BITS = tl.constexpr(22)
_LAST_ID = tl.constexpr(2**22 - 1)
# splitmix64, as in `workbench.sample.random`
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def row_logits(
    logits, slots, seen, repetition, presence, frequency, row, row_stride, columns, inside,
    vocab_size, PENALISED: tl.constexpr,
):  # fmt: skip
    """Return a row's logits at some columns, the model's own and penalised; -inf outside."""
    own = tl.load(logits + row * row_stride + columns, mask=inside, other=-float("inf"))
    own = own.to(tl.float32)
    x = own
    if PENALISED:
        slot = tl.load(slots + row)
        if slot >= 0:
            counts = tl.load(seen + slot * vocab_size + columns, mask=inside, other=0)
            factor = tl.load(repetition + row)
            once, often = tl.load(presence + row), tl.load(frequency + row)
            output = (counts - 1).to(tl.float32)
            divided = tl.div_rn(own, tl.zeros_like(own) + factor)
            changed = tl.where(own < 0.0, own * factor, divided)
            changed = changed - tl.where(counts > 1, once, 0.0)
            changed = changed - often * output
            x = tl.where(counts > 0, changed, own)
    return own, x


@triton.jit
def weight_of(x, peak, heat, PRECISE: tl.constexpr):
    """Return the fixed-point weights of softmax(x / heat): 2^40 at the peak, int64."""
    relative = tl.div_rn(x - peak, tl.zeros_like(x) + heat)
    # As torch's, where Triton's own is the fast approximation.
    share = libdevice.exp(relative) if PRECISE else tl.exp(relative)
    return (share * _ONE).to(tl.int64)


@triton.jit
def bin_of(x, peak, heat):
    """Return how far below the peak x lies, as one of NUM_BINS."""
    distance = (peak - x) * (9.0 / heat)
    return tl.minimum(distance, 255.0).to(tl.int32)


@triton.jit
def key_of(x, token):
    """Return an int64 that orders tokens by logit, and equal ones by id, lower first."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    # A negative float's bits sort backwards until all but the sign are flipped.
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << _ID_BITS) + (token ^ _LAST_ID)


@triton.jit
def least_key(peak, heat, vocab_size):
    """Return a key so low that no token below it has any weight."""
    return key_of(peak - 30.0 * heat, vocab_size - 1)


@triton.jit
def value_of(key):
    """Return the logit that a key was made from."""
    ordered = (key >> _ID_BITS).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def token_of(key):
    """Return the token that a key was made from."""
    return ((key & _LAST_ID) ^ _LAST_ID).to(tl.int32)


@triton.jit
def uniform_of(key, index):
    """Return the uniform of a stream's key and an output index, float64 in [0, 1)."""
    x = key.to(tl.uint64) + (index + 1).to(tl.uint64) * _GOLDEN
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    x = x ^ (x >> 31)
    return (x >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def row_peak(peaks, row, num_chunks, TILE: tl.constexpr):
    """Return the largest of a row's chunk peaks, NaN if one is, and the chunk that has it first."""
    chunk = tl.arange(0, TILE)
    values = tl.load(peaks + row * num_chunks + chunk, mask=chunk < num_chunks, other=-float("inf"))
    broken = tl.max((values != values).to(tl.int32), axis=0) > 0
    peak = tl.max(values, axis=0)
    first = tl.min(tl.where(values == peak, chunk, TILE), axis=0)
    return tl.where(broken, float("nan"), peak), first
