"""A x for a mixed batch: each token with the rank rows of its own LoRA adapter.

The first half of an adapter's product, for all parts of a fused projection in one launch. Tokens
come in tiles of one variant (a request's choice of rank rows), so that a row that is read serves
them all; rank rows lie anywhere, and only as many are read as the variant has, so ranks mix without
padding. The inputs are split for few tokens, so that all rank rows are asked for at once;
`lora_expand` adds the parts up. Tiles of one token are multiplied by threads, others on tensor
cores. Tiles without tokens end at once: a CUDA graph has as many programs as there may be tiles.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels import lora_mixes as mixes
from workbench.kernels.early import await_previous, load_ahead, starts_early
from workbench.kernels.launch import INTERPRETED, Config, Launch, Plan, cdiv, power_of_2
from workbench.kernels.spec import Case, Inputs, KernelSpec, check_limits

LIMITS = {"tile": (1, 64), "parts": (1, 3)}
ALIGNMENT = 128  # inputs: where a split may end


@triton.jit
def lora_shrink_kernel(
    x, a, rows, ranks, order, tiles, inner, num_inputs, num_places, width, x_stride, parts,
    split_inputs, STEPS: tl.constexpr, TILE: tl.constexpr, EARLY: tl.constexpr, EVEN: tl.constexpr,
    UPCAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Fill a tile's BLOCK_R columns of one part of inner [splits, places, parts, width]."""
    AHEAD: tl.constexpr = TILE <= 16
    tile, split = tl.program_id(0), tl.program_id(2)
    blocks = (width + BLOCK_R - 1) // BLOCK_R
    part, block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    variant = load_ahead(tiles + tile * 3)
    first = load_ahead(tiles + tile * 3 + 1)
    count = load_ahead(tiles + tile * 3 + 2)
    rank = load_ahead(ranks + variant)
    columns = block * BLOCK_R + tl.arange(0, BLOCK_R)
    wanted = (columns < rank) & (count > 0)
    row = load_ahead(rows + variant * width + columns, mask=wanted, other=0).to(tl.int64)
    near = a + (row * parts + part) * num_inputs
    tokens = tl.arange(0, TILE)
    known = tokens < count
    token = load_ahead(order + first + tokens, mask=known, other=0).to(tl.int64)
    start = split * split_inputs
    end = tl.minimum(start + split_inputs, num_inputs)
    if AHEAD:
        ws = _inputs(near, wanted, start + tl.arange(0, BLOCK_K), end, EVEN)
    await_previous(EARLY)
    if (count == 0) | (block * BLOCK_R >= rank):
        return
    sources = x + token * x_stride
    if TILE == 1:
        acc = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
    else:
        acc = tl.zeros([TILE, BLOCK_R], tl.float32)
    if AHEAD:
        xs = _inputs(sources, known, start + tl.arange(0, BLOCK_K), end, EVEN)
        acc = _multiply(xs, ws, acc, TILE, UPCAST)
        start += BLOCK_K
    if STEPS > 1 or not AHEAD:
        for begin in tl.range(start, end, BLOCK_K, num_stages=STAGES):
            k = begin + tl.arange(0, BLOCK_K)
            ws = _inputs(near, wanted, k, end, EVEN)
            xs = _inputs(sources, known, k, end, EVEN)
            acc = _multiply(xs, ws, acc, TILE, UPCAST)
    if TILE == 1:
        acc = tl.sum(acc, axis=1)[None, :]
    place = (split * num_places + first + tokens).to(tl.int64) * parts + part
    out = inner + place[:, None] * width + columns[None, :]
    tl.store(out, acc, mask=known[:, None] & wanted[None, :])


@triton.jit
def _inputs(rows, known, k, end, EVEN: tl.constexpr):
    """Return what rows that begin at `rows` hold at k, up to `end`; 0 for rows not known."""
    there = known[:, None] if EVEN else known[:, None] & (k < end)[None, :]
    return load_ahead(rows[:, None] + k[None, :], mask=there, other=0.0)


@triton.jit
def _multiply(xs, ws, acc, TILE: tl.constexpr, UPCAST: tl.constexpr):
    """Return acc + xs ws^T [TILE, BLOCK_R]; for one token, products that are not summed yet."""
    if TILE == 1:
        acc += ws.to(tl.float32) * xs.to(tl.float32)
    elif UPCAST:
        acc = tl.dot(xs.to(tl.float32), tl.trans(ws).to(tl.float32), acc, input_precision="ieee")
    else:
        acc = tl.dot(xs, tl.trans(ws), acc, input_precision="ieee")
    return acc


def split_of(num_inputs: int, splits: int) -> int:
    """Return how many inputs a split takes."""
    return cdiv(cdiv(num_inputs, splits), ALIGNMENT) * ALIGNMENT


def reference(
    x: Tensor,
    a: Tensor,
    rows: Tensor,
    ranks: Tensor,
    order: Tensor,
    tiles: Tensor,
    inner: Tensor,
    tile: int,
) -> Tensor:
    """Return `inner` with the products of every split, tile after tile."""
    inner, parts = inner.clone(), a.shape[1]
    size = split_of(x.shape[1], inner.shape[0])
    for variant, first, count in tiles.tolist():
        rank = int(ranks[variant])
        kept = rows[variant, :rank].long()
        inputs = x[order[first : first + count].long()].float()
        for split in range(inner.shape[0]):
            span = slice(split * size, (split + 1) * size)
            for part in range(parts):
                found = inputs[:, span] @ a[kept, part, span].float().T
                inner[split, first : first + count, part, :rank] = found
    return inner


def default(x: Tensor, tile: int, inner: Tensor, tiles: Tensor, **_: Any) -> Config:
    """Return blocks that hold a split's rank rows at once for few tokens, short ones for many."""
    if tile > 16:
        return {"BLOCK_R": 16, "BLOCK_K": 256 // x.element_size(), "STAGES": 3, "num_warps": 4}
    if tile > 1 or len(tiles) >= 16:  # what waits is other programs' turn: small ones, many at once
        step, stages = (256 if tile > 1 else 512) // x.element_size(), 3 if tile > 1 else 1
        return {"BLOCK_R": 16, "BLOCK_K": step, "STAGES": stages, "num_warps": 1}
    step = max(64, power_of_2(split_of(x.shape[1], inner.shape[0])))
    step = min(step, 2048 // x.element_size())
    return {"BLOCK_R": 16, "BLOCK_K": step, "STAGES": 1, "num_warps": max(1, step // 128)}


def plan(
    x: Tensor,
    a: Tensor,
    rows: Tensor,
    ranks: Tensor,
    order: Tensor,
    tiles: Tensor,
    inner: Tensor,
    tile: int,
    joins: bool = False,
    config: Config | None = None,
) -> Plan:
    """Plan A x for x [T, K] and a [R, P, K].

    rows [V, W] and ranks [V] int32: the rank rows of each variant. order [T] int32: tokens by
    variant; tiles [N, 3] int32: (variant, first place in order, number of at most `tile`) each.
    Fills inner [splits, T, P, W] float32 at the places in order, up to each variant's rank.
    joins: see `Launch`.
    """
    num_inputs, parts, width = x.shape[1], a.shape[1], rows.shape[1]
    check_limits("lora_shrink", LIMITS, tile=tile, parts=parts)
    assert x.stride(1) == 1, "the inputs of a row are adjacent"
    assert a.is_contiguous(), "rank rows lie one after the other"
    config = config or default(x, tile, inner, tiles)
    splits, step = inner.shape[0], split_of(num_inputs, inner.shape[0])
    arguments = {
        "x": x,
        "a": a,
        "rows": rows,
        "ranks": ranks,
        "order": order,
        "tiles": tiles,
        "inner": inner,
        "num_inputs": num_inputs,
        "num_places": inner.shape[1],
        "width": width,
        "x_stride": x.stride(0),
        "parts": parts,
        "split_inputs": step,
        "STEPS": cdiv(step, config["BLOCK_K"]),
        "TILE": tile if tile == 1 else max(16, tile),
        "EARLY": starts_early(x.device),
        "EVEN": num_inputs % config["BLOCK_K"] == 0 and step % config["BLOCK_K"] == 0,
        "UPCAST": INTERPRETED,
    }
    grid = (len(tiles), parts * cdiv(width, config["BLOCK_R"]), splits)
    return Plan((Launch(lora_shrink_kernel, grid, arguments, config, joins),), inner)


def make_inputs(
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    counts: list[int],
    ranks: list[int],
    inputs: int,
    parts: int = 1,
    splits: int = 1,
    tile: int = 16,
) -> Inputs:
    """Return a mixed batch over rank rows of which products have spread 1."""
    generator = torch.Generator(device).manual_seed(seed)
    made = mixes.make_mix(device, generator, counts, ranks, tile)
    places, width = len(made["order"]), made["rows"].shape[1]
    x = torch.randn(places, inputs, generator=generator, device=device)
    a = torch.randn(sum(ranks), parts, inputs, generator=generator, device=device) / inputs**0.5
    inner = torch.zeros(splits, places, parts, width, device=device)
    return {"x": x.to(dtype), "a": a.to(dtype), **made, "inner": inner, "tile": tile}


def choose_splits(tile: int, num_inputs: int) -> int:
    """Return into how many parts inputs are cut: up to sixteen, of 512 or, where tiles have many
    tokens, 1024, or a multiple. Not by the tiles' number, as each choice is compiled."""
    size = 512 if tile <= 16 else 1024
    while cdiv(num_inputs, size) > 16:
        size *= 2
    return cdiv(num_inputs, size)


def flops(**inputs: Any) -> int:
    """Return multiplications and additions of all tokens with their rank rows."""
    return int(mixes.multiply_adds(inputs, inputs["a"][0].numel()))


def num_bytes(**inputs: Any) -> int:
    """Return bytes: the rank rows in use once, the tokens' inputs, and the products."""
    a, x = inputs["a"], inputs["x"]
    products = int(mixes.multiply_adds(inputs, 2 * a.shape[1]))  # four bytes each
    read = (
        mixes.used_rows(inputs) * a[0].nbytes
        + mixes.num_tokens(inputs) * x.shape[1] * x.element_size()
    )
    return int(read + products)


def keep(config: Config, inputs: Inputs) -> bool:
    """Whether a configuration fits the shared memory."""
    size = inputs["x"].element_size()
    tile = config["BLOCK_K"] * (config["BLOCK_R"] + max(16, inputs["tile"]))
    return bool(tile * size * config["STAGES"] <= 200 << 10)


_QKV = {"inputs": 4096, "parts": 3}

SPEC = KernelSpec(
    name="lora_shrink",
    summary="A x of LoRA for a batch of mixed adapters and ranks",
    reference=reference,
    plan=plan,
    make_inputs=make_inputs,
    cases={
        "one token, rank 1": Case({"counts": [1], "ranks": [1], "inputs": 64}),
        "mixed ranks": Case({"counts": [3, 1, 17], "ranks": [8, 20, 3], "inputs": 96, "parts": 3}),
        "split": Case({"counts": [2, 1], "ranks": [4, 16], "inputs": 300, "splits": 2}),
        "even": Case({"counts": [2, 1], "ranks": [4, 16], "inputs": 512, "splits": 2}),
        "odd inputs": Case({"counts": [5], "ranks": [5], "inputs": 70, "parts": 2}),
        "tokens alone": Case(
            {
                "counts": [1, 2, 1],
                "ranks": [4, 16, 20],
                "inputs": 300,
                "parts": 2,
                "splits": 2,
                "tile": 1,
            }
        ),
        "wide tiles": Case({"counts": [40, 70], "ranks": [4, 9], "inputs": 64, "tile": 64}),
        "llama-8b qkv b1": Case(
            {"counts": [1], "ranks": [16], **_QKV, "splits": 8, "tile": 1}, small=False, quick=True
        ),
        "llama-8b qkv b32": Case({**mixes.MIXED, **_QKV, "splits": 8}, small=False, quick=True),
        "llama-8b down b32": Case({**mixes.MIXED, "inputs": 14336, "splits": 14}, small=False),
        "llama-8b qkv b32, mixed": Case({**mixes.RANKS, **_QKV, "splits": 4}, small=False),
        "llama-8b qkv b256": Case({**mixes.EIGHTS, **_QKV, "splits": 8}, small=False),
        "llama-8b qkv prefill": Case(
            {"counts": [512] * 4, "ranks": [16] * 4, **_QKV, "tile": 64}, small=False
        ),
    },
    space={
        "BLOCK_R": (16, 32),
        "BLOCK_K": (64, 128, 256, 512, 1024),
        "STAGES": (1, 2, 3, 4),
        "num_warps": (1, 2, 4, 8),
    },
    keep=keep,
    default=default,
    bucket=lambda **i: (
        f"k{i['a'].shape[2]} p{i['a'].shape[1]} t{i['tile']} n{power_of_2(len(i['tiles']))}"
    ),
    flops=flops,
    num_bytes=num_bytes,
    tolerance={
        torch.float32: (1e-4, 1e-4),
        torch.float16: (2e-3, 2e-3),
        torch.bfloat16: (2e-3, 2e-3),
    },
    limits=LIMITS,
    sources=("lora_mixes.py",),
)
