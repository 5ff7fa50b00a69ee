"""Causal attention of many new tokens per sequence: packed queries of any lengths, old contexts.

Compute-bound. A program takes one KV head and a tile of BLOCK_M query rows: BLOCK_M // G tokens of
one sequence times the G query heads of that KV head, so that a key is loaded once for the group.
Keys come from the paged cache, or, where no sequence has an old context, from the new tokens
themselves (PAGED false), which spares the gather. Tiles that every query sees run without a mask.
Which sequence a tile belongs to is found on the device: the grid depends on capacities alone.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from workbench.kernels.attention_math import LOG2E, soft_capped, with_sink
from workbench.kernels.early import await_previous, starts_early
from workbench.kernels.launch import INTERPRETED, Config, Launch, Plan, cdiv, power_of_2, sm_count
from workbench.kernels.prefill_hopper import (
    BLOCK_M,
    HOPPER_DEFAULT,
    hopper_arguments,
    prefill_hopper_kernel,
    suits_hopper,
)
from workbench.kernels.prefill_tiles import find_row, key_bounds, load_tile, token_scales
from workbench.kernels.quantised_kv import LARGEST, QUANTISED
from workbench.kernels.spec import check_limits

LIMITS = {"head_dim": (1, 256), "group": (1, 64), "block_size": (1, 1024)}


@triton.jit
def _scores(q, k, key_scales, factor, cap, slope, own, key, end, window, old, ancestors, word_row,
            CAPPED: tl.constexpr, ALIBI: tl.constexpr, WINDOWED: tl.constexpr,
            TREE: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Return (score, unit): exp2(score * unit) is the softmax's exponential; -inf: not seen."""
    score = tl.dot(q, tl.trans(k), input_precision="ieee")
    if key_scales is not None:
        score = score * key_scales[None, :]
    unit = factor
    if CAPPED or ALIBI:
        score = score * factor
        unit = LOG2E
    if CAPPED:
        score = soft_capped(score, cap)
    if ALIBI:
        score = score - slope[:, None] * tl.abs(own[:, None] - key[None, :]).to(tl.float32)
    if MASKED:
        if TREE:
            new = tl.maximum(key - old, 0)
            is_new = (key >= old) & (key < end)
            words = tl.load(
                ancestors + word_row[:, None] + new[None, :] // 32, mask=is_new[None, :], other=-1
            )
            seen = (((words >> (new[None, :] % 32)) & 1) != 0) & (key < end)[None, :]
        else:
            seen = (key[None, :] <= own[:, None]) & (key < end)[None, :]
        if WINDOWED:
            seen = seen & (key[None, :] > own[:, None] - window)
        score = tl.where(seen, score, float("-inf"))
    return score, unit


@triton.jit
def _attend(acc, norm, peak, q, k, v, scales, scale_stride, table, first_row, low, high, head,
            first, end, own, slope, factor, cap, window, old, ancestors, word_row, k_stride,
            v_stride,
            K: tl.constexpr, D: tl.constexpr, TILE_D: tl.constexpr, BLOCK_N: tl.constexpr,
            BLOCK_SIZE: tl.constexpr, PAGED: tl.constexpr, TMA: tl.constexpr,
            LARGEST: tl.constexpr, CAPPED: tl.constexpr, ALIBI: tl.constexpr,
            WINDOWED: tl.constexpr, TREE: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Run the online softmax over the key tiles from `low` to `high`."""
    d = tl.arange(0, TILE_D)
    for start in range(low, high, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        keys = load_tile(k, table, first_row, start, d, head, first, end, k_stride, K, D, TILE_D,
                     BLOCK_N, BLOCK_SIZE, PAGED, TMA, MASKED).to(q.dtype)  # fmt: skip
        key_scales = None
        if scales is not None:
            key_scales = token_scales(scales, table, start, head, first, end, K, BLOCK_N,
                                       BLOCK_SIZE)  # fmt: skip
        score, unit = _scores(q, keys, key_scales, factor, cap, slope, own, key, end, window, old,
                              ancestors, word_row, CAPPED, ALIBI, WINDOWED, TREE,
                              MASKED)  # fmt: skip
        higher = tl.maximum(peak, tl.max(score, axis=1) * unit)
        floor = higher
        if MASKED and (WINDOWED or TREE):  # nothing seen yet: no peak to subtract
            floor = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(score * unit - floor[:, None])
        shrink = tl.exp2(peak - floor)
        norm = norm * shrink + tl.sum(weight, axis=1)
        acc = acc * shrink[:, None]
        if scales is not None:  # times LARGEST: as large as the values, far from a half's smallest
            value_scales = token_scales(scales + scale_stride, table, start, head, first, end, K,
                                         BLOCK_N, BLOCK_SIZE)  # fmt: skip
            weight = weight * (value_scales * LARGEST)[None, :]
        values = load_tile(v, table, first_row, start, d, head, first, end, v_stride, K, D, TILE_D,
                       BLOCK_N, BLOCK_SIZE, PAGED, TMA, MASKED).to(q.dtype)  # fmt: skip
        acc = tl.dot(weight.to(q.dtype), values, acc, input_precision="ieee")
        peak = higher
    return acc, norm, peak


@triton.jit(do_not_specialize=["num_rows", "window", "num_tiles"])
def prefill_attention_kernel(
    q, k, v, scales, starts, context_lens, tables, sinks, alibi, ancestors, out, num_rows,
    num_tiles, window, q_stride, k_stride, v_stride, scale_stride, table_stride, scale, cap,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, TILE_D: tl.constexpr, WORDS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, PAGED: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr,
    LARGEST: tl.constexpr, EARLY: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Attend from one tile of one row's new tokens, for the G query heads of one KV head."""
    await_previous(EARLY)
    BLOCK_Q: tl.constexpr = BLOCK_M // G
    ALIBI: tl.constexpr = alibi is not None
    TREE: tl.constexpr = ancestors is not None
    head = tl.program_id(0)
    # The last tiles see most keys: they start first, so that the end of the grid is even.
    row, tile = find_row(starts, num_rows, num_tiles - 1 - tl.program_id(1), BLOCK_Q)
    first_token = tl.load(starts + row)
    num_new = tl.load(starts + row + 1) - first_token
    if tile * BLOCK_Q >= num_new:
        return
    end = tl.load(context_lens + row)
    old = end - num_new
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, TILE_D)
    new = tile * BLOCK_Q + m // G  # among the row's new tokens
    heads = head * G + m % G
    wanted = (m // G < BLOCK_Q) & (new < num_new)
    inside = wanted[:, None] & (d < D)[None, :]
    token = (first_token + new).to(tl.int64)
    queries = tl.load(
        q + (token * q_stride + heads * D)[:, None] + d[None, :], mask=inside, other=0.0
    )
    HALVES: tl.constexpr = scales is not None  # bytes become halves in fewer instructions
    queries = queries.to(tl.float32 if UPCAST else tl.float16) if UPCAST or HALVES else queries
    slope = tl.load(alibi + heads, mask=wanted, other=0.0) if ALIBI else 0.0
    factor = scale if CAPPED or ALIBI else scale * LOG2E
    own, lowest = old + new, old + tile * BLOCK_Q
    first, low, first_open, last_open, high = key_bounds(
        old, end, lowest, window, WINDOWED, TREE, BLOCK_Q, BLOCK_N
    )
    acc = tl.zeros([BLOCK_M, TILE_D], tl.float32)
    norm = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    table = tables + row * table_stride if PAGED else starts
    for part in tl.static_range(0 if WINDOWED else 1, 3):  # the window's edge, open, the diagonal
        acc, norm, peak = _attend(
            acc, norm, peak, queries, k, v, scales, scale_stride, table, first_token,
            low if part == 0 else (first_open if part == 1 else last_open),
            first_open if part == 0 else (last_open if part == 1 else high),
            head, first, end, own, slope, factor, cap, window, old, ancestors, token * WORDS,
            k_stride, v_stride, K, D, TILE_D, BLOCK_N, BLOCK_SIZE, PAGED, TMA, LARGEST, CAPPED,
            ALIBI, WINDOWED, TREE, part != 1,
        )  # fmt: skip
    if sinks is not None:
        sink = tl.load(sinks + heads, mask=wanted, other=0.0).to(tl.float32) * LOG2E
        acc, norm = with_sink(acc, norm, peak, sink, 1)
    acc = acc / tl.where(norm > 0.0, norm, 1.0)[:, None]
    acc = acc / LARGEST if HALVES else acc
    places = ((token * K * G + heads) * D)[:, None] + d[None, :]
    tl.store(out + places, acc.to(out.dtype.element_ty), mask=inside)


def new_per_row(q: Tensor, context_lens: Tensor, num_tokens: int | None) -> int:
    """Return the average number of new tokens of a row, to the power of two above."""
    tokens = q.shape[0] if num_tokens is None else num_tokens
    return power_of_2(cdiv(tokens, max(1, len(context_lens))))


def default(
    q: Tensor,
    k: Tensor,
    context_lens: Tensor,
    num_tokens: int | None = None,
    block_tables: Tensor | None = None,
    **others: Any,
) -> Config:
    """Return as many query rows as an average sequence fills (16 to 128), against 64 keys; fewer
    where programs would be too few for every multiprocessor.

    On Hopper the kernel that is made for it, where it takes the inputs and they fill its tile.
    """
    group = power_of_2(q.shape[1] // k.shape[-2])
    filled = new_per_row(q, context_lens, num_tokens) * group
    inputs = {"q": q, "k": k, "block_tables": block_tables, **others}
    if filled >= BLOCK_M and suits_hopper(config=HOPPER_DEFAULT, **inputs):
        return HOPPER_DEFAULT
    width = power_of_2(q.shape[2])
    narrow = q.element_size() == 4  # float32 is multiplied without tensor cores: small tiles
    most = 16 if narrow else 64 if width > 128 else 128
    rows, tokens = max(16, group, min(most, filled)), num_tokens or q.shape[0]
    while rows > max(16, group) and k.shape[-2] * tokens * group < rows * sm_count(q.device):
        rows //= 2
    wide = width * k.element_size() > 256
    return {
        "BLOCK_M": rows,
        "BLOCK_N": 32 if wide or narrow else 64,
        "TMA": 0,
        "HOPPER": 0,
        "num_warps": 8 if rows >= 128 else 4,
        "num_stages": 2 if wide else 3,
    }


def plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    block_tables: Tensor | None = None,
    *,
    scale: float,
    num_tokens: int | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
    ancestors: Tensor | None = None,
    kv_scales: Tensor | None = None,
    out: Tensor | None = None,
    config: Config | None = None,
) -> Plan:
    """Plan attention from packed q [T, H, D]; returns out [T, H, D].

    With block_tables [S, B]: k and v are the two halves of a layer's cache, each [blocks,
    block_size, K, D], which holds the new tokens already. Without: k, v [T, K, D] are the new
    tokens themselves and no row has older ones. query_starts [S + 1] int32 need not begin at 0 (the
    rows of a larger batch); num_tokens is then how many tokens they hold (None: T). Other arguments
    as of `attention_math.attend`; ancestors [T, W] int32; kv_scales [2, blocks, K, block_size]
    float32 of an int8 or fp8 cache.
    """
    tokens, heads, dim = q.shape
    kv_heads, paged = k.shape[-2], block_tables is not None
    block_size = k.shape[1] if paged else 1
    table_stride = 0 if block_tables is None else block_tables.stride(0)
    check_limits(
        "prefill_attention", LIMITS, head_dim=dim, group=heads // kv_heads, block_size=block_size
    )
    assert q[:1].is_contiguous(), "the heads of a token are adjacent"
    assert (k.dtype in QUANTISED) == (kv_scales is not None), "an 8-bit cache has scales"
    config = config or default(
        q, k, context_lens, num_tokens, block_tables, window=window, soft_cap=soft_cap,
        sinks=sinks, alibi=alibi, ancestors=ancestors, kv_scales=kv_scales,
    )  # fmt: skip
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    rows, block_q = len(context_lens), config["BLOCK_M"] // (heads // kv_heads)
    num_tiles = cdiv(tokens if num_tokens is None else num_tokens, block_q) + rows
    arguments = {
        "q": q, "k": k, "v": v, "starts": query_starts, "context_lens": context_lens,
        "tables": block_tables, "scales": kv_scales,
        "scale_stride": 0 if kv_scales is None else kv_scales.stride(0),
        "LARGEST": LARGEST.get(k.dtype, 1.0), "sinks": sinks, "alibi": alibi, "out": out,
        "ancestors": ancestors, "num_rows": rows, "num_tiles": num_tiles,
        "window": window or 0, "q_stride": q.stride(0), "k_stride": k.stride(-3),
        "v_stride": v.stride(-3), "table_stride": table_stride,
        "scale": scale, "cap": soft_cap or 0.0, "K": kv_heads, "G": heads // kv_heads, "D": dim,
        "TILE_D": max(16, power_of_2(dim)), "BLOCK_SIZE": block_size,
        "WORDS": 0 if ancestors is None else ancestors.shape[1], "PAGED": paged,
        "EARLY": starts_early(q.device), "CAPPED": soft_cap is not None,
        "WINDOWED": window is not None, "UPCAST": INTERPRETED,
    }  # fmt: skip
    launch = _launch(arguments, (kv_heads, num_tiles), config)
    return Plan((launch,) if tokens and rows else (), out)


def _launch(arguments: dict[str, Any], grid: tuple[int, ...], config: Config) -> Launch:
    """Return the launch of the kernel that a configuration asks for."""
    q, k, v = (arguments[name] for name in "qkv")
    if config["HOPPER"]:
        assert config["BLOCK_M"] == BLOCK_M, "two warpgroups of 64 rows"
        block_size = arguments["BLOCK_SIZE"] if arguments["PAGED"] else None
        own = hopper_arguments(q, k, v, block_size, config)
        names = [parameter.name for parameter in prefill_hopper_kernel.params]
        chosen = {name: own.get(name, arguments.get(name)) for name in names}
        return Launch(prefill_hopper_kernel, grid, chosen, {"num_warps": 4})
    if config["TMA"]:
        described = (_descriptor(side, config, arguments["D"]) for side in (k, v))
        arguments = {**arguments, **dict(zip("kv", described, strict=True))}
    constants = {name: value for name, value in config.items() if name != "HOPPER"}
    return Launch(prefill_attention_kernel, grid, arguments, constants)


def _descriptor(side: Tensor, config: Config, dim: int) -> Any:
    """Return a descriptor of keys or values as a matrix with a token's heads in a row."""
    rows, width = side.numel() // (side.shape[-2] * dim), side.shape[-2] * dim
    block = [config["BLOCK_N"], max(16, power_of_2(dim))]
    return TensorDescriptor(side, [rows, width], [side.stride(-3), 1], block)
