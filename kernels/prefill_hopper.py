"""Causal prefill for Hopper: a warp fetches, two warpgroups multiply while they work out weights.

The plan of FlashAttention-3 (arXiv 2407.08608), in Gluon, which leaves barriers and waits to its
author. A program takes 128 query rows of one KV head, 64 for each warpgroup. A warp of its own asks
the copy engine for tiles of keys and values, the last tile first, as the diagonal is there; a
warpgroup issues the product of its queries with the next keys, then that of its last weights with
their values, and works out the next weights while the tensor cores run. A tile of a paged cache is
fetched block by block, so blocks of 8 tokens and more need no gathering.

Heads of 64 or 128 in half precision, plainly causal: `suits_hopper` says. Gluon has no interpreter:
this kernel is compiled everywhere and run on a GPU alone, where the tests of `prefill_attention`
hold it to the same reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from workbench.kernels.launch import Config
from workbench.kernels.prefill_warpgroup import (
    await_mix,
    clear_tail,
    issue_mix,
    issue_scores,
    load_queries,
    softmax,
    store_half,
)

BLOCK_M = 128
HOPPER_DEFAULT: Config = {
    "BLOCK_M": BLOCK_M,
    "BLOCK_N": 128,
    "TMA": 1,
    "HOPPER": 1,
    "num_warps": 4,
    "num_stages": 2,
}
_FEATURES = ("window", "soft_cap", "sinks", "alibi", "ancestors", "kv_scales")
_LOG2E = gl.constexpr(1.4426950408889634)


@gluon.jit
def _find_row(starts, num_rows, tile, BLOCK_Q: gl.constexpr):
    """Return (row, tile within the row); see `prefill_tiles.find_row`."""
    base = gl.load(starts)
    low = 0
    high = num_rows
    while high - low > 1:
        middle = (low + high) // 2
        if (gl.load(starts + middle) - base) // BLOCK_Q + middle <= tile:
            low = middle
        else:
            high = middle
    return low, tile - ((gl.load(starts + low) - base) // BLOCK_Q + low)


@gluon.jit
def _attend(work, GROUP: gl.constexpr, G: gl.constexpr, K: gl.constexpr, D: gl.constexpr,
            N: gl.constexpr, STAGES: gl.constexpr, BLOCK_Q: gl.constexpr):  # fmt: skip
    """A warpgroup's work: attend from its 64 query rows over `tiles` tiles, the last one first."""
    (q, out, unit, queries, keys, values, k_full, k_empty, v_full, v_empty, first_token, num_new,
     tile, old, end, tiles, num_open, q_stride, head) = work  # fmt: skip
    HALVES: gl.constexpr = D // 64
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    WEIGHT: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    ROWS: gl.constexpr = gl.SliceLayout(1, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16]))
    DTYPE: gl.constexpr = q.dtype.element_ty
    load_queries(q, queries, GROUP, first_token, num_new, tile, head, q_stride, G, D, BLOCK_Q)
    own = old + tile * BLOCK_Q + (GROUP * 64 + gl.arange(0, 64, ROWS)) // G
    norm = gl.zeros([64], gl.float32, ROWS)
    peak = gl.full([64], float("-inf"), gl.float32, ROWS)
    acc = gl.zeros([64, 64], gl.float32, OUT)
    more = gl.zeros([64, 64], gl.float32, OUT)
    mbarrier.wait(k_full.index(0), 0)
    score = issue_scores(queries, keys, GROUP, 0, N, HALVES)
    score = warpgroup_mma_wait(0, deps=[score])
    mbarrier.arrive(k_empty.index(0))
    start = (tiles - 1) * N
    weight, shrink, norm, peak = softmax(score, norm, peak, unit, own, start, end, N, True)
    weight = gl.convert_layout(weight.to(DTYPE), WEIGHT)
    if start + N > end:
        mbarrier.wait(v_full.index(0), 0)
        clear_tail(values, 0, end - start, N, HALVES)
    for i in range(1, tiles):
        stage, last = i % STAGES, (i - 1) % STAGES
        mbarrier.wait(k_full.index(stage), (i // STAGES) & 1)
        score = issue_scores(queries, keys, GROUP, stage, N, HALVES)
        mbarrier.wait(v_full.index(last), ((i - 1) // STAGES) & 1)
        acc, more = issue_mix(weight, values, last, acc, more, HALVES)
        score = warpgroup_mma_wait(HALVES, deps=[score])
        mbarrier.arrive(k_empty.index(stage))
        start = (tiles - 1 - i) * N
        if tiles - 1 - i >= num_open:
            new, shrink, norm, peak = softmax(score, norm, peak, unit, own, start, end, N, True)
        else:
            new, shrink, norm, peak = softmax(score, norm, peak, unit, own, start, end, N, False)
        acc, more = await_mix(acc, more, HALVES)
        mbarrier.arrive(v_empty.index(last))
        shrunk = gl.convert_layout(shrink, gl.SliceLayout(1, OUT))[:, None]
        acc, more = acc * shrunk, more * shrunk
        weight = gl.convert_layout(new.to(DTYPE), WEIGHT)
    last = (tiles - 1) % STAGES
    mbarrier.wait(v_full.index(last), ((tiles - 1) // STAGES) & 1)
    acc, more = issue_mix(weight, values, last, acc, more, HALVES)
    acc, more = await_mix(acc, more, HALVES)
    store_half(out, acc, norm, 0, GROUP, first_token, num_new, tile, head, G, K, D, BLOCK_Q)
    if HALVES == 2:
        store_half(out, more, norm, 1, GROUP, first_token, num_new, tile, head, G, K, D, BLOCK_Q)


@gluon.jit
def _fetch(source, parts, full, stage, table, first_token, start, head, num_blocks,
           D: gl.constexpr, N: gl.constexpr, BOX: gl.constexpr, BLOCK_SIZE: gl.constexpr,
           PAGED: gl.constexpr):  # fmt: skip
    """Ask for one tile of keys or values: a box [BOX, 64] for each piece of a block, twice."""
    PIECES: gl.constexpr = N // BOX
    mbarrier.expect(full.index(stage), N * D * 2)
    for piece in gl.static_range(PIECES):
        row = first_token + start + piece * BOX
        if PAGED:  # past the last block it is fetched again: nobody looks there
            position = start + piece * BOX
            block = gl.load(table + gl.minimum(position // BLOCK_SIZE, num_blocks - 1))
            row = block * BLOCK_SIZE + position % BLOCK_SIZE
        for half in gl.static_range(D // 64):
            part = parts.index((stage * (D // 64) + half) * PIECES + piece)
            column = head * D + half * 64
            tma.async_copy_global_to_shared(source, [row, column], full.index(stage), part)


@gluon.jit
def _produce(work, D: gl.constexpr, N: gl.constexpr, STAGES: gl.constexpr, BOX: gl.constexpr,
             BLOCK_SIZE: gl.constexpr, PAGED: gl.constexpr):  # fmt: skip
    """The fetching warp's work: tiles of keys and of values in turn, where there is room."""
    (k, v, k_parts, v_parts, k_full, k_empty, v_full, v_empty, table, first_token, tiles, head,
     num_blocks) = work  # fmt: skip
    for i in range(tiles):
        stage, free = i % STAGES, ((i // STAGES) & 1) ^ 1
        start = (tiles - 1 - i) * N
        mbarrier.wait(k_empty.index(stage), free)
        _fetch(k, k_parts, k_full, stage, table, first_token, start, head, num_blocks, D, N, BOX,
               BLOCK_SIZE, PAGED)  # fmt: skip
        mbarrier.wait(v_empty.index(stage), free)
        _fetch(v, v_parts, v_full, stage, table, first_token, start, head, num_blocks, D, N, BOX,
               BLOCK_SIZE, PAGED)  # fmt: skip


@gluon.jit(do_not_specialize=["num_rows", "num_tiles"])
def prefill_hopper_kernel(
    q, k, v, starts, context_lens, tables, out, num_rows, num_tiles, q_stride, table_stride, scale,
    G: gl.constexpr, K: gl.constexpr, D: gl.constexpr, N: gl.constexpr, STAGES: gl.constexpr,
    BOX: gl.constexpr, BLOCK_SIZE: gl.constexpr, PAGED: gl.constexpr,
):  # fmt: skip
    """Attend from 128 query rows, for the G query heads of one KV head."""
    BLOCK_Q: gl.constexpr = 128 // G
    HALVES: gl.constexpr = D // 64
    PARTS: gl.constexpr = STAGES * HALVES * (N // BOX)
    DTYPE: gl.constexpr = q.dtype.element_ty
    TILE: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    FIRST: gl.constexpr = 0
    SECOND: gl.constexpr = 1
    head = gl.program_id(0)
    # The last tiles see most keys: they start first, so that the end of the grid is even.
    row, tile = _find_row(starts, num_rows, num_tiles - 1 - gl.program_id(1), BLOCK_Q)
    first_token = gl.load(starts + row)
    num_new = gl.load(starts + row + 1) - first_token
    if tile * BLOCK_Q < num_new:
        end = gl.load(context_lens + row)
        old = end - num_new
        lowest = old + tile * BLOCK_Q
        tiles = (gl.minimum(end, lowest + BLOCK_Q) + N - 1) // N
        num_open = (lowest + 1) // N  # tiles that all of the program's queries see
        queries = gl.allocate_shared_memory(DTYPE, [2 * HALVES, 64, 64], TILE)
        k_parts = gl.allocate_shared_memory(DTYPE, [PARTS, BOX, 64], TILE)
        v_parts = gl.allocate_shared_memory(DTYPE, [PARTS, BOX, 64], TILE)
        keys = k_parts._reinterpret(DTYPE, [STAGES * HALVES, N, 64], TILE)
        values = v_parts._reinterpret(DTYPE, [STAGES * HALVES, N, 64], TILE)
        k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
        k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
        v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
        v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
        for stage in gl.static_range(STAGES):
            mbarrier.init(k_full.index(stage), count=1)
            mbarrier.init(v_full.index(stage), count=1)
            mbarrier.init(k_empty.index(stage), count=2)  # both warpgroups leave a tile
            mbarrier.init(v_empty.index(stage), count=2)
        fence_async_shared()
        num_blocks = (end + BLOCK_SIZE - 1) // BLOCK_SIZE
        table = tables + row * table_stride if PAGED else starts
        unit = scale * _LOG2E
        work = (q, out, unit, queries, keys, values, k_full, k_empty, v_full, v_empty, first_token,
                num_new, tile, old, end, tiles, num_open, q_stride, head)  # fmt: skip
        fetched = (k, v, k_parts, v_parts, k_full, k_empty, v_full, v_empty, table, first_token,
                   tiles, head, num_blocks)  # fmt: skip
        gl.warp_specialize(
            [
                (_attend, (work, FIRST, G, K, D, N, STAGES, BLOCK_Q)),
                (_attend, (work, SECOND, G, K, D, N, STAGES, BLOCK_Q)),
                (_produce, (fetched, D, N, STAGES, BOX, BLOCK_SIZE, PAGED)),
            ],
            [4, 1],
            [240, 24],
        )


def suits_hopper(
    q: Tensor, k: Tensor, config: Config, block_tables: Tensor | None = None, **features: Any
) -> bool:
    """Return whether the kernel takes these inputs on the GPU where they are.

    features: what it has no code for (window, soft_cap, sinks, alibi, ancestors, kv_scales), None
    where not asked for. The copy engine wants rows of 16-byte multiples, and a tile is made of
    whole pieces of blocks.
    """
    if any(features.get(name) is not None for name in _FEATURES) or not _is_hopper(q.device):
        return False
    block_n, stages, dim = config["BLOCK_N"], config["num_stages"], q.shape[2]
    if config["BLOCK_M"] != BLOCK_M or config["num_warps"] != 4 or not config["TMA"]:
        return False
    halves = q.dtype == k.dtype and q.dtype in (torch.float16, torch.bfloat16)
    aligned = k.stride(-3) % 8 == 0 and k.data_ptr() % 16 == 0
    shared = (BLOCK_M + 2 * block_n * stages) * dim * 2
    if not (halves and aligned and dim in (64, 128)) or shared > 220 << 10:
        return False
    block_size = block_n if block_tables is None else k.shape[1]
    box = min(block_n, block_size)
    whole = box >= 8 and block_n % box == 0 and block_size % box == 0
    return whole and q.shape[1] // k.shape[-2] <= BLOCK_M


def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def hopper_arguments(
    q: Tensor, k: Tensor, v: Tensor, block_size: int | None, config: Config
) -> dict[str, Any]:
    """Return those of the kernel's arguments that `prefill_attention_kernel` has not."""
    block_n, dim = config["BLOCK_N"], q.shape[2]
    box = min(block_n, block_size or block_n)
    layout = gl.NVMMASharedLayout(128, 16, 2)

    def described(side: Tensor) -> TensorDescriptor:
        width = side.shape[-2] * dim
        return TensorDescriptor(
            side, [side.numel() // width, width], [side.stride(-3), 1], [box, 64], layout
        )

    return {
        "k": described(k), "v": described(v), "N": block_n, "STAGES": config["num_stages"],
        "BOX": box,
    }  # fmt: skip
