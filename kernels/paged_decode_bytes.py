"""The decode kernel for 8-bit caches: two values are read as one 16-bit word, unpacked to halves.

Tensor cores want pairs of neighbours along the summed dimension in a register. For 16-bit words
the shared-memory loads give them; for bytes they would be fetched one by one, which bound the
kernel by instructions. So keys and values travel as words [keys, D/2], and each word gives an even
and an odd half: q k = q_even k_even + q_odd k_odd, and the output is two tiles, interleaved at the
end. Unpacking takes two instructions for two values (a byte permutation and a conversion).
"""

from __future__ import annotations

import triton
import triton.language as tl

from workbench.kernels.attention_math import LOG2E
from workbench.kernels.early import await_previous
from workbench.kernels.paged_decode_splits import finish, shaped, split_span


@triton.jit
def unpacked(words, SECOND: tl.constexpr, INT8: tl.constexpr, NATIVE: tl.constexpr):
    """Return the lower (SECOND: upper) bytes of int16 words as float16, exactly.

    NATIVE: in PTX, two words in a register at a time (fp8 needs capability 8.9).
    """
    if NATIVE and INT8:
        # 1024 + (b + 128), whose last ten bits are the byte, less 1152
        if SECOND:
            half = tl.inline_asm_elementwise(
                "{ .reg .b32 t, c; xor.b32 t, $1, 0x80808080; prmt.b32 t, t, 0x64646464, 0x4341; "
                "mov.b32 c, 0x64806480; sub.rn.f16x2 $0, t, c; }",
                "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2)  # fmt: skip
        else:
            half = tl.inline_asm_elementwise(
                "{ .reg .b32 t, c; xor.b32 t, $1, 0x80808080; prmt.b32 t, t, 0x64646464, 0x4240; "
                "mov.b32 c, 0x64806480; sub.rn.f16x2 $0, t, c; }",
                "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2)  # fmt: skip
    elif NATIVE:
        if SECOND:
            half = tl.inline_asm_elementwise(
                "{ .reg .b32 t; .reg .b16 a, b; prmt.b32 t, $1, 0, 0x4431; "
                "mov.b32 {a, b}, t; cvt.rn.f16x2.e4m3x2 $0, a; }",
                "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2)  # fmt: skip
        else:
            half = tl.inline_asm_elementwise(
                "{ .reg .b32 t; .reg .b16 a, b; prmt.b32 t, $1, 0, 0x4420; "
                "mov.b32 {a, b}, t; cvt.rn.f16x2.e4m3x2 $0, a; }",
                "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2)  # fmt: skip
    elif INT8:
        half = ((words if SECOND else words << 8) >> 8).to(tl.float16)
    else:  # the bits of e4m3 are those of a half with another bias: 2^8 too small
        byte = (words >> 8) if SECOND else words
        bits = ((byte & 0x7F) << 7) | ((byte & 0x80) << 8)
        half = bits.to(tl.int16).to(tl.float16, bitcast=True) * 256.0
    return half


@triton.jit
def _products(even, odd, words, INT8: tl.constexpr, UPCAST: tl.constexpr):
    """Return q k [heads, keys] of the halves of q [heads, D/2] and words [keys, D/2]."""
    low = unpacked(words, False, INT8, not UPCAST).to(even.dtype)
    high = unpacked(words, True, INT8, not UPCAST).to(even.dtype)
    product = tl.dot(even, tl.trans(low), input_precision="ieee")
    return tl.dot(odd, tl.trans(high), product, input_precision="ieee")


@triton.jit
def _mixed(acc, weight, words, SECOND: tl.constexpr, INT8: tl.constexpr, UPCAST: tl.constexpr):
    """Return acc + weight [heads, keys] times one half of words [keys, D/2]."""
    DTYPE: tl.constexpr = tl.float32 if UPCAST else tl.float16
    half = unpacked(words, SECOND, INT8, not UPCAST).to(DTYPE)
    return tl.dot(weight.to(DTYPE), half, acc, input_precision="ieee")


@triton.jit(do_not_specialize=["num_splits", "window"])
def paged_decode_bytes_kernel(
    q, kv, scales, tables, context_lens, sinks, alibi, out, partial, partial_lse,
    q_stride, side_stride, scale_stride, table_stride, num_splits, window, scale, cap,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr,
    EARLY: tl.constexpr, INT8: tl.constexpr, LARGEST: tl.constexpr, TILE_G: tl.constexpr,
    TILE_D: tl.constexpr, BLOCK_N: tl.constexpr, MIN_SPLIT: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """Attend as `paged_decode_kernel` does; kv holds words [2, blocks, block_size, K, D/2]."""
    await_previous(EARLY)
    HALF: tl.constexpr = TILE_D // 2
    ALIBI: tl.constexpr = alibi is not None
    DTYPE: tl.constexpr = tl.float32 if UPCAST else tl.float16
    tl.static_assert(not SWAP, "words are unpacked for the older tensor-core instruction")
    head, row, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    first, length, tokens = split_span(context_lens, row, window, num_splits, WINDOWED, MIN_SPLIT)
    begin = first + split * tokens
    end = tl.minimum(begin + tokens, length)
    if SPLIT and begin >= end:
        return
    group, d, key = tl.arange(0, TILE_G), tl.arange(0, TILE_D), tl.arange(0, BLOCK_N)
    heads = head * G + group
    own = (group < G)[:, None] & (d < D)[None, :]
    queries = tl.load(q + row * q_stride + heads[:, None] * D + d[None, :], mask=own, other=0.0)
    even, odd = tl.split(tl.reshape(queries.to(DTYPE), [TILE_G, HALF, 2]))
    slope = tl.load(alibi + heads, mask=group < G, other=0.0) if ALIBI else 0.0
    factor = scale if CAPPED or ALIBI else scale * LOG2E
    acc_even = tl.zeros([TILE_G, HALF], tl.float32)
    acc_odd = tl.zeros([TILE_G, HALF], tl.float32)
    norm = tl.zeros([TILE_G], tl.float32)
    peak = tl.full([TILE_G], float("-inf"), tl.float32)
    word = tl.arange(0, HALF)
    for start in range(begin, end, BLOCK_N):
        position = start + key
        valid = position < end
        block = tl.load(tables + row * table_stride + position // BLOCK_SIZE, mask=valid, other=0)
        block, offset = block.to(tl.int64), position % BLOCK_SIZE
        source = kv + ((block * BLOCK_SIZE + offset) * K + head)[:, None] * (D // 2) + word[None, :]
        wanted = valid[:, None] & (word < D // 2)[None, :]
        place = scales + (block * K + head) * BLOCK_SIZE + offset
        k = tl.load(source, mask=wanted, other=0)
        v = tl.load(source + side_stride, mask=wanted, other=0)
        k_scale = tl.load(place, mask=valid, other=0.0)
        v_scale = tl.load(place + scale_stride, mask=valid, other=0.0)
        score = _products(even, odd, k, INT8, UPCAST) * k_scale[None, :]
        away = (length - 1 - position).to(tl.float32)
        score = shaped(score, factor, cap, slope, away, False, CAPPED, ALIBI)
        score = tl.where(valid[None, :], score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, axis=1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(peak - higher)
        norm = norm * shrink + tl.sum(weight, axis=1)
        # Times LARGEST, weights are of the size of the values: far from a half's smallest.
        weight = weight * (v_scale * LARGEST)[None, :]
        acc_even = _mixed(acc_even * shrink[:, None], weight, v, False, INT8, UPCAST)
        acc_odd = _mixed(acc_odd * shrink[:, None], weight, v, True, INT8, UPCAST)
        peak = higher
    acc = tl.interleave(acc_even, acc_odd) * (1.0 / LARGEST)
    finish(acc, norm, peak, sinks, out, partial, partial_lse, row, split, num_splits,
           head, heads, group, d, K, G, D, SPLIT, False)  # fmt: skip
