"""A x for a mixed batch: each token with the rank rows of its own LoRA adapter.

The first half of an adapter's product, for all parts of a fused projection in one launch. Tokens
come in tiles of one variant (a request's choice of rank rows), so that a row that is read serves
them all; rank rows lie anywhere, and only as many are read as the variant has, so ranks mix without
padding. The inputs are split for few tokens; `lora_expand` adds the parts up. Tiles without tokens
end at once: a CUDA graph has as many programs as there may be tiles.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels.launch import INTERPRETED, Config, Launch, Plan, cdiv
from workbench.kernels.spec import Case, Inputs, KernelSpec, check_limits

LIMITS = {"tile": (1, 64), "parts": (1, 3)}
ALIGNMENT = 128  # inputs: where a split may end


@triton.jit
def lora_shrink_kernel(
    x, a, rows, ranks, order, tiles, inner, num_inputs, num_places, width, x_stride, parts,
    split_inputs, TILE: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Fill a tile's BLOCK_R columns of one part of inner [splits, places, parts, width]."""
    tile, split = tl.program_id(0), tl.program_id(2)
    blocks = (width + BLOCK_R - 1) // BLOCK_R
    part, block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    variant = tl.load(tiles + tile * 3)
    first = tl.load(tiles + tile * 3 + 1)
    count = tl.load(tiles + tile * 3 + 2)
    rank = tl.load(ranks + variant)
    if (count == 0) | (block * BLOCK_R >= rank):
        return
    tokens, columns = tl.arange(0, TILE), block * BLOCK_R + tl.arange(0, BLOCK_R)
    known, wanted = tokens < count, columns < rank
    token = tl.load(order + first + tokens, mask=known, other=0).to(tl.int64)
    row = tl.load(rows + variant * width + columns, mask=wanted, other=0).to(tl.int64)
    begin = split * split_inputs
    end = tl.minimum(begin + split_inputs, num_inputs)
    acc = tl.zeros([TILE, BLOCK_R], tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        x_places = x + token[:, None] * x_stride + k[None, :]
        a_places = a + (row[None, :] * parts + part) * num_inputs + k[:, None]
        if EVEN:
            xs = tl.load(x_places, mask=known[:, None], other=0.0)
            ws = tl.load(a_places, mask=wanted[None, :], other=0.0)
        else:
            inside = k < end
            xs = tl.load(x_places, mask=known[:, None] & inside[None, :], other=0.0)
            ws = tl.load(a_places, mask=wanted[None, :] & inside[:, None], other=0.0)
        if UPCAST:
            xs, ws = xs.to(tl.float32), ws.to(tl.float32)
        acc = tl.dot(xs, ws, acc, input_precision="ieee")
    place = (split * num_places + first + tokens).to(tl.int64) * parts + part
    out = inner + place[:, None] * width + columns[None, :]
    tl.store(out, acc, mask=known[:, None] & wanted[None, :])


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


def default(x: Tensor, **_: Any) -> Config:
    """Return blocks as wide as a memory transaction wants them."""
    step = 128 if x.element_size() == 2 else 64
    return {"BLOCK_R": 16, "BLOCK_K": step, "STAGES": 3, "num_warps": 4}


def plan(
    x: Tensor,
    a: Tensor,
    rows: Tensor,
    ranks: Tensor,
    order: Tensor,
    tiles: Tensor,
    inner: Tensor,
    tile: int,
    config: Config | None = None,
) -> Plan:
    """Plan A x for x [T, K] and a [R, P, K].

    rows [V, W] and ranks [V] int32: the rank rows of each variant. order [T] int32: tokens by
    variant; tiles [N, 3] int32: (variant, first place in order, number of at most `tile`) each.
    Fills inner [splits, T, P, W] float32 at the places in order, up to each variant's rank.
    """
    num_inputs, parts, width = x.shape[1], a.shape[1], rows.shape[1]
    check_limits("lora_shrink", LIMITS, tile=tile, parts=parts)
    assert x.stride(1) == 1, "the inputs of a row are adjacent"
    assert a.is_contiguous(), "rank rows lie one after the other"
    config = config or default(x)
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
        "TILE": max(16, tile),
        "EVEN": num_inputs % config["BLOCK_K"] == 0 and step % config["BLOCK_K"] == 0,
        "UPCAST": INTERPRETED,
    }
    grid = (len(tiles), parts * cdiv(width, config["BLOCK_R"]), splits)
    return Plan((Launch(lora_shrink_kernel, grid, arguments, config),), inner)


def make_batch(
    device: torch.device, generator: torch.Generator, counts: list[int], ranks: list[int], tile: int
) -> Inputs:
    """Return a batch in which variant v of rank ranks[v] has counts[v] tokens, scattered among as
    many without an adapter, with rank rows in no order."""
    num_tokens, width = 2 * sum(counts), max(16, 1 << (max(ranks) - 1).bit_length())
    places = torch.randperm(num_tokens, generator=generator, device=device)[: sum(counts)]
    order = torch.zeros(num_tokens, dtype=torch.int32, device=device)
    order[: len(places)] = places.int()
    rows = torch.zeros(len(ranks), width, dtype=torch.int32, device=device)
    shuffled = torch.randperm(sum(ranks), generator=generator, device=device).int()
    made, first = [], 0
    for variant, (count, rank) in enumerate(zip(counts, ranks, strict=True)):
        rows[variant, :rank] = shuffled[sum(ranks[:variant]) :][:rank]
        made += [(variant, first + at, min(tile, count - at)) for at in range(0, count, tile)]
        first += count
    made += [(0, 0, 0)] * 2
    return {
        "rows": rows,
        "ranks": torch.tensor(ranks, dtype=torch.int32, device=device),
        "order": order,
        "tiles": torch.tensor(made, dtype=torch.int32, device=device),
    }


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
    made = make_batch(device, generator, counts, ranks, tile)
    num_tokens, width = len(made["order"]), made["rows"].shape[1]
    x = torch.randn(num_tokens, inputs, generator=generator, device=device)
    a = torch.randn(sum(ranks), parts, inputs, generator=generator, device=device) / inputs**0.5
    inner = torch.zeros(splits, num_tokens, parts, width, device=device)
    return {"x": x.to(dtype), "a": a.to(dtype), **made, "inner": inner, "tile": tile}


def _used(inputs: Inputs) -> list[tuple[int, int]]:
    """Return (rank, tokens) of every tile."""
    ranks = inputs["ranks"].tolist()
    return [(ranks[variant], count) for variant, _, count in inputs["tiles"].tolist()]


def choose_splits(num_tiles: int, parts: int, width: int, num_inputs: int, num_sms: int) -> int:
    """Return into how many parts inputs are cut so that two programs run on each multiprocessor."""
    programs = num_tiles * parts * cdiv(width, 16)
    wanted = cdiv(2 * num_sms, programs)
    most = max(1, num_inputs // 512)
    return min(1 << (min(wanted, most, 16).bit_length() - 1), 16)


def flops(**inputs: Any) -> int:
    """Return multiplications and additions of all tokens with their rank rows."""
    parts, size = inputs["a"].shape[1:]
    return sum(2 * rank * count * parts * size for rank, count in _used(inputs))


def num_bytes(**inputs: Any) -> int:
    """Return bytes: the rank rows in use once, the tokens' inputs, and the products."""
    a, x, tiles = inputs["a"], inputs["x"], inputs["tiles"].tolist()
    ranks = inputs["ranks"].tolist()
    used = sum(ranks[v] for v in {v for v, _, count in tiles if count})
    tokens = sum(count for _, _, count in tiles)
    products = sum(4 * rank * count * a.shape[1] for rank, count in _used(inputs))
    read = used * a[0].numel() * a.element_size() + tokens * x.shape[1] * x.element_size()
    return int(read + products)


def keep(config: Config, inputs: Inputs) -> bool:
    """Whether a configuration fits the shared memory."""
    size = inputs["x"].element_size()
    tile = config["BLOCK_K"] * (config["BLOCK_R"] + max(16, inputs["tile"]))
    return bool(tile * size * config["STAGES"] <= 200 << 10)


_MIXED = {"counts": [1] * 32, "ranks": [16] * 32, "tile": 16}

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
        "wide tiles": Case({"counts": [40, 70], "ranks": [4, 9], "inputs": 64, "tile": 64}),
        "llama-8b qkv b1": Case(
            {"counts": [1], "ranks": [16], "inputs": 4096, "parts": 3, "splits": 8},
            small=False,
            quick=True,
        ),
        "llama-8b qkv b32": Case(
            {**_MIXED, "inputs": 4096, "parts": 3, "splits": 2}, small=False, quick=True
        ),
        "llama-8b down b32": Case({**_MIXED, "inputs": 14336, "splits": 4}, small=False),
        "llama-8b gate b32, mixed": Case(
            {
                "counts": [1] * 32,
                "ranks": [8, 16, 32, 64] * 8,
                "inputs": 4096,
                "parts": 2,
                "splits": 2,
            },
            small=False,
        ),
        "llama-8b qkv prefill": Case(
            {
                "counts": [512] * 4,
                "ranks": [16] * 4,
                "inputs": 4096,
                "parts": 3,
                "tile": 64,
            },
            small=False,
        ),
    },
    space={
        "BLOCK_R": (16, 32),
        "BLOCK_K": (64, 128, 256, 512),
        "STAGES": (2, 3, 4),
        "num_warps": (2, 4, 8),
    },
    keep=keep,
    default=default,
    bucket=lambda **i: f"k{i['a'].shape[2]} p{i['a'].shape[1]} t{i['tile']} n{len(i['tiles'])}",
    flops=flops,
    num_bytes=num_bytes,
    tolerance={
        torch.float32: (1e-4, 1e-4),
        torch.float16: (2e-3, 2e-3),
        torch.bfloat16: (2e-3, 2e-3),
    },
    limits=LIMITS,
)
