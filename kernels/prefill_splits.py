"""How attention of few new tokens over long contexts is split over the keys, and the merge.

A draft of six tokens over a context of 16K would otherwise be read by a program for each KV head.
Key tiles are dealt out evenly; a part leaves its output and the base-2 logarithm of its weight, as
decode's parts do (`paged_decode_splits`), but for each new token. The number of parts is the
host's choice; lengths are read on the device.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels.attention_math import LOG2E
from workbench.kernels.early import await_previous
from workbench.kernels.launch import Launch, cdiv, power_of_2

MAX_CHUNK_SPLITS = 32
_SHORTEST = 256  # keys: a part of fewer takes about as long


@triton.jit
def part_bounds(low, first_open, last_open, high, split, num_splits, SPLIT: tl.constexpr,
                BLOCK_N: tl.constexpr):  # fmt: skip
    """Return the bounds of `key_bounds`, but for `first`, cut to what a part takes of them."""
    if not SPLIT:
        return low, first_open, last_open, high
    size = tl.cdiv(tl.cdiv(tl.maximum(high - low, 0), BLOCK_N), num_splits) * BLOCK_N
    begin = tl.minimum(low + split * size, high)
    end = tl.minimum(begin + size, high)
    first_open = tl.minimum(tl.maximum(first_open, begin), end)
    last_open = tl.minimum(tl.maximum(last_open, begin), end)
    return begin, first_open, last_open, end


@triton.jit
def store_part(acc, norm, peak, out, partial, partial_lse, token, heads, d, split, num_splits,
               wanted, H: tl.constexpr, D: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """Store what a tile's queries found: the outputs, or a part of them with its weight."""
    place, inside = token * H + heads, wanted[:, None] & (d < D)[None, :]
    if SPLIT:
        part = place * num_splits + split
        tl.store(partial + (part * D)[:, None] + d[None, :], acc, mask=inside)
        tl.store(partial_lse + part, peak + tl.log2(norm), mask=wanted)
    else:
        tl.store(out + (place * D)[:, None] + d[None, :], acc.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_splits", "num_rows"])
def merge_parts_kernel(
    partial, partial_lse, starts, sinks, out, num_rows, num_splits,
    H: tl.constexpr, D: tl.constexpr, EARLY: tl.constexpr, TILE_S: tl.constexpr,
    TILE_D: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one head of one token; tokens of no row stay as they are."""
    await_previous(EARLY)
    head, token = tl.program_id(0), tl.load(starts) + tl.program_id(1)
    if token >= tl.load(starts + num_rows):
        return
    split, d = tl.arange(0, TILE_S), tl.arange(0, TILE_D)
    place = token.to(tl.int64) * H + head
    part = place * num_splits + split
    lse = tl.load(partial_lse + part, mask=split < num_splits, other=float("-inf"))
    peak = tl.max(lse, axis=0)
    if sinks is not None:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        peak = tl.maximum(peak, sink)
    weight = tl.exp2(lse - peak)
    norm = tl.sum(weight, axis=0)
    if sinks is not None:
        norm += tl.exp2(sink - peak)
    wanted = (split < num_splits)[:, None] & (d < D)[None, :]
    parts = tl.load(partial + part[:, None] * D + d[None, :], mask=wanted, other=0.0)
    mixed = tl.sum(parts * weight[:, None], axis=0) / norm
    tl.store(out + place * D + d, mixed.to(out.dtype.element_ty), mask=d < D)


def parts_of(q: Tensor, num_splits: int) -> dict[str, Any]:
    """Return the kernel's arguments for so many parts of queries [T, H, D]."""
    shape, split = (*q.shape[:2], num_splits), num_splits > 1
    return {
        "num_splits": num_splits,
        "SPLIT": split,
        "partial": torch.empty((*shape, q.shape[2]), device=q.device) if split else None,
        "partial_lse": torch.empty(shape, device=q.device) if split else None,
    }


def merge_launch(arguments: dict[str, Any], heads: int, num_tokens: int) -> Launch:
    """Return the merge behind the kernel with these arguments, for so many packed tokens."""
    shared = ("partial", "partial_lse", "starts", "sinks", "out", "num_rows", "num_splits", "D")
    merge = {name: arguments[name] for name in (*shared, "EARLY", "TILE_D")}
    merge |= {"H": heads, "TILE_S": power_of_2(arguments["num_splits"])}
    return Launch(merge_parts_kernel, (heads, num_tokens), merge, {"num_warps": 4})


def choose_chunk_splits(
    num_tokens: int, rows: int, kv_heads: int, longest: int, num_sms: int
) -> int:
    """Return into how many parts the keys of packed new tokens are cut: a power of two, 1 where
    their programs fill the GPU anyhow or no context is long.

    A program counts as one KV head of four tokens. longest: keys of the longest row. Few numbers
    come out, as each is a graph's.
    """
    if not num_tokens:
        return 1
    programs = kv_heads * (cdiv(num_tokens, 4) + rows)
    wanted = min(4 * num_sms // programs, longest // _SHORTEST, MAX_CHUNK_SPLITS)
    return 1 << max(0, wanted.bit_length() - 1)
