"""Causal attention of many new tokens per sequence: packed queries of any lengths, old contexts.

Compute-bound. A program takes one KV head and a tile of BLOCK_M query rows: BLOCK_M // G tokens of
one sequence times the G query heads of that KV head, so that a key is loaded once for the group.
Keys come from the paged cache, or, where no sequence has an old context, from the new tokens
themselves (PAGED false), which spares the gather. Tiles that every query sees run without a mask.
Which sequence a tile belongs to is found on the device: the grid depends on capacities alone. Few
queries over long contexts are split over the keys too (`prefill_splits`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from workbench.kernels.attention_math import LOG2E, with_sink
from workbench.kernels.early import await_previous, starts_early
from workbench.kernels.launch import INTERPRETED, Config, Launch, Plan, cdiv, power_of_2, sm_count
from workbench.kernels.prefill_fold import fold_tiles
from workbench.kernels.prefill_hopper import (
    BLOCK_M,
    HOPPER_DEFAULT,
    hopper_arguments,
    prefill_hopper_kernel,
    suits_hopper,
)
from workbench.kernels.prefill_splits import merge_launch, part_bounds, parts_of, store_part
from workbench.kernels.prefill_tiles import find_row, key_bounds
from workbench.kernels.quantised_kv import LARGEST, QUANTISED
from workbench.kernels.spec import check_limits

LIMITS = {"head_dim": (1, 256), "group": (1, 64), "block_size": (1, 1024)}


@triton.jit(do_not_specialize=["num_rows", "window", "num_tiles", "num_splits"])
def prefill_attention_kernel(
    q, k, v, scales, starts, context_lens, tables, sinks, alibi, ancestors, out, partial,
    partial_lse, num_rows, num_tiles, num_splits, window, q_stride, k_stride, v_stride,
    scale_stride, table_stride, scale, cap,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, TILE_D: tl.constexpr, WORDS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, PAGED: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr,
    LARGEST: tl.constexpr, EARLY: tl.constexpr, UPCAST: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Attend from one tile of one row's new tokens, for the G query heads of one KV head."""
    await_previous(EARLY)
    BLOCK_Q: tl.constexpr = BLOCK_M // G
    ALIBI: tl.constexpr = alibi is not None
    TREE: tl.constexpr = ancestors is not None
    head, split = tl.program_id(0), tl.program_id(2)
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
    token = (first_token + new).to(tl.int64)
    places = (token * q_stride + heads * D)[:, None] + d[None, :]
    queries = tl.load(q + places, mask=wanted[:, None] & (d < D)[None, :], other=0.0)
    HALVES: tl.constexpr = scales is not None  # bytes become halves in fewer instructions
    queries = queries.to(tl.float32 if UPCAST else tl.float16) if UPCAST or HALVES else queries
    slope = tl.load(alibi + heads, mask=wanted, other=0.0) if ALIBI else 0.0
    factor = scale if CAPPED or ALIBI else scale * LOG2E
    own, lowest = old + new, old + tile * BLOCK_Q
    first, low, first_open, last_open, high = key_bounds(
        old, end, lowest, window, WINDOWED, TREE, BLOCK_Q, BLOCK_N
    )
    low, first_open, last_open, high = part_bounds(
        low, first_open, last_open, high, split, num_splits, SPLIT, BLOCK_N
    )
    acc = tl.zeros([BLOCK_M, TILE_D], tl.float32)
    norm = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    table = tables + row * table_stride if PAGED else starts
    for part in tl.static_range(0 if WINDOWED else 1, 3):  # the window's edge, open, the diagonal
        acc, norm, peak = fold_tiles(
            acc, norm, peak, queries, k, v, scales, scale_stride, table, first_token,
            low if part == 0 else (first_open if part == 1 else last_open),
            first_open if part == 0 else (last_open if part == 1 else high),
            head, first, end, own, slope, factor, cap, window, old, ancestors, token * WORDS,
            k_stride, v_stride, K, D, TILE_D, BLOCK_N, BLOCK_SIZE, PAGED, TMA, LARGEST, CAPPED,
            ALIBI, WINDOWED, TREE, SPLIT, part != 1,
        )  # fmt: skip
    if sinks is not None and not SPLIT:
        sink = tl.load(sinks + heads, mask=wanted, other=0.0).to(tl.float32) * LOG2E
        acc, norm = with_sink(acc, norm, peak, sink, 1)
    acc = acc / (tl.where(norm > 0.0, norm, 1.0) * (LARGEST if HALVES else 1.0))[:, None]
    store_part(acc, norm, peak, out, partial, partial_lse, token, heads, d, split, num_splits,
               wanted, K * G, D, SPLIT)  # fmt: skip


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
    num_splits: int = 1,
    out: Tensor | None = None,
    config: Config | None = None,
) -> Plan:
    """Plan attention from packed q [T, H, D]; returns out [T, H, D].

    With block_tables [S, B]: k and v are the two halves of a layer's cache, each [blocks,
    block_size, K, D], which holds the new tokens already. Without: k, v [T, K, D] are the new
    tokens themselves and no row has older ones. query_starts [S + 1] int32 need not begin at 0 (the
    rows of a larger batch); num_tokens is then how many tokens they hold (None: T). Other arguments
    as of `attention_math.attend`; ancestors [T, W] int32; kv_scales [2, blocks, K, block_size]
    float32 of an int8 or fp8 cache; num_splits: parts of the keys, where the kernel is not that for
    Hopper.
    """
    tokens, heads, dim = q.shape
    kv_heads, paged = k.shape[-2], block_tables is not None
    block_size, group = k.shape[1] if paged else 1, heads // kv_heads
    check_limits("prefill_attention", LIMITS, head_dim=dim, group=group, block_size=block_size)
    _check_inputs(q, k, kv_scales)
    special = {"window": window, "soft_cap": soft_cap, "sinks": sinks, "alibi": alibi}
    special |= {"ancestors": ancestors, "kv_scales": kv_scales}
    config = config or default(q, k, context_lens, num_tokens, block_tables, **special)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    rows, block_q = len(context_lens), config["BLOCK_M"] // group
    num_tiles = cdiv(tokens if num_tokens is None else num_tokens, block_q) + rows
    parts = parts_of(q, 1 if config["HOPPER"] else num_splits)
    arguments = {
        "q": q, "k": k, "v": v, "starts": query_starts, "context_lens": context_lens,
        "tables": block_tables, "scales": kv_scales,
        "scale_stride": 0 if kv_scales is None else kv_scales.stride(0),
        "LARGEST": LARGEST.get(k.dtype, 1.0), "sinks": sinks, "alibi": alibi, "out": out,
        "ancestors": ancestors, "num_rows": rows, "num_tiles": num_tiles,
        "window": window or 0, "q_stride": q.stride(0), "k_stride": k.stride(-3),
        "v_stride": v.stride(-3),
        "table_stride": 0 if block_tables is None else block_tables.stride(0),
        "scale": scale, "cap": soft_cap or 0.0, "K": kv_heads, "G": group, "D": dim,
        "TILE_D": max(16, power_of_2(dim)), "BLOCK_SIZE": block_size,
        "WORDS": 0 if ancestors is None else ancestors.shape[1], "PAGED": paged,
        "EARLY": starts_early(q.device), "CAPPED": soft_cap is not None,
        "WINDOWED": window is not None, "UPCAST": INTERPRETED, **parts,
    }  # fmt: skip
    attend = _launch(arguments, (kv_heads, num_tiles, parts["num_splits"]), config)
    merge = [merge_launch(arguments, heads, num_tokens or tokens)] if parts["SPLIT"] else []
    return Plan((attend, *merge) if tokens and rows else (), out)


def _check_inputs(q: Tensor, k: Tensor, kv_scales: Tensor | None) -> None:
    assert q[:1].is_contiguous(), "the heads of a token are adjacent"
    assert (k.dtype in QUANTISED) == (kv_scales is not None), "an 8-bit cache has scales"


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
