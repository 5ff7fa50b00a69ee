"""y += B (scale (A x) + shift) for a mixed batch: the second half of each token's LoRA adapter.

Takes what `lora_shrink` found, adds its splits up, and adds to the outputs in place; a token that
goes through no adapter is not touched. All parts of a fused projection are done in one launch, each
with its own products. Only a variant's own rank rows are read, the first of them before the kernel
before has ended. Tiles of one token are multiplied by threads, others on tensor cores.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels.early import await_previous, load_ahead, starts_early
from workbench.kernels.launch import INTERPRETED, Config, Launch, Plan, cdiv, power_of_2
from workbench.kernels.lora_math import (
    add_dot,
    products_of_one,
    products_of_tile,
    rank_rows,
    row_weights,
    span_of,
)
from workbench.kernels.lora_mixes import make_mix, multiply_adds, num_tokens, used_rows
from workbench.kernels.spec import Case, Inputs, KernelSpec, check_limits

LIMITS = {"tile": (1, 64), "parts": (1, 3)}


@triton.jit(do_not_specialize=["num_places"])
def lora_expand_kernel(
    inner, b, y, starts, rows, scales, shifts, ranks, order, tiles, num_outputs, num_places, width,
    y_stride, SPLITS: tl.constexpr, SPLITS_2: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr,
    EARLY: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add to BLOCK_N outputs of a tile's tokens; they lie in one part."""
    tile = tl.program_id(0)
    variant = load_ahead(tiles + tile * 3)
    first = load_ahead(tiles + tile * 3 + 1)
    count = load_ahead(tiles + tile * 3 + 2)
    part, begin, end = span_of(starts, tl.program_id(1), PARTS, EVEN, BLOCK_N)
    rank = load_ahead(ranks + variant)
    outputs = begin + tl.arange(0, BLOCK_N)
    inside = (outputs < end) | EVEN
    columns = tl.arange(0, BLOCK_R)
    wanted, listed = (columns < rank) & (count > 0), variant * width
    row, scale, shift = rank_rows(rows, scales, shifts, listed + columns, wanted)
    weights = row_weights(b, row, num_outputs, outputs, wanted, inside, EVEN)
    await_previous(EARLY)
    if count == 0:
        return
    inner += first * PARTS * width + part * width
    step = num_places.to(tl.int64) * PARTS * width  # from split to split
    if TILE == 1:
        at = y + tl.load(order + first).to(tl.int64) * y_stride + outputs
        total = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        found = products_of_one(inner, step, columns, wanted, SPLITS, SPLITS_2)
        total += tl.sum(weights.to(tl.float32) * (found * scale + shift)[:, None], axis=0)
        for start in tl.range(BLOCK_R, rank, BLOCK_R, num_stages=1):
            columns = start + tl.arange(0, BLOCK_R)
            wanted = columns < rank
            row, scale, shift = rank_rows(rows, scales, shifts, listed + columns, wanted)
            weights = row_weights(b, row, num_outputs, outputs, wanted, inside, EVEN)
            found = products_of_one(inner, step, columns, wanted, SPLITS, SPLITS_2)
            total += tl.sum(weights.to(tl.float32) * (found * scale + shift)[:, None], axis=0)
        tl.store(at, total.to(y.dtype.element_ty), mask=inside)
    else:
        tokens = tl.arange(0, TILE)
        known = tokens < count
        token = tl.load(order + first + tokens, mask=known, other=0).to(tl.int64)
        out = y + token[:, None] * y_stride + outputs[None, :]
        mask = known[:, None] if EVEN else known[:, None] & inside[None, :]
        begins = inner + tokens[:, None] * PARTS * width
        sums = products_of_tile(begins, step, columns, known, wanted, SPLITS)
        acc = tl.zeros([TILE, BLOCK_N], tl.float32)
        acc = add_dot(sums * scale + shift, weights, acc, UPCAST)
        for start in tl.range(BLOCK_R, rank, BLOCK_R, num_stages=1):
            columns = start + tl.arange(0, BLOCK_R)
            wanted = columns < rank
            row, scale, shift = rank_rows(rows, scales, shifts, listed + columns, wanted)
            weights = row_weights(b, row, num_outputs, outputs, wanted, inside, EVEN)
            sums = products_of_tile(begins, step, columns, known, wanted, SPLITS)
            acc = add_dot(sums * scale + shift, weights, acc, UPCAST)
        acc += tl.load(out, mask=mask, other=0.0).to(tl.float32)
        tl.store(out, acc.to(y.dtype.element_ty), mask=mask)


def reference(
    inner: Tensor,
    b: Tensor,
    y: Tensor,
    starts: Tensor,
    rows: Tensor,
    scales: Tensor,
    shifts: Tensor,
    ranks: Tensor,
    order: Tensor,
    tiles: Tensor,
    bounds: tuple[int, ...],
    tile: int,
) -> Tensor:
    """Return y with what every tile's adapters add, summed in float32."""
    y, products = y.clone(), inner.sum(0)  # [T, P, W]
    for variant, first, count in tiles.tolist():
        rank = int(ranks[variant])
        kept, tokens = rows[variant, :rank].long(), order[first : first + count].long()
        for part in range(len(bounds) - 1):
            span = slice(bounds[part], bounds[part + 1])
            factors = products[first : first + count, part, :rank] * scales[variant, :rank]
            factors = factors + shifts[variant, :rank]
            added = y[tokens, span].float() + factors @ b[kept, span].float()
            y[tokens, span] = added.to(y.dtype)
    return y


def default(tile: int, b: Tensor, **_: Any) -> Config:
    """Return blocks of which a thread reads sixteen bytes of each rank row, if it has one token."""
    if tile > 16:
        return {"BLOCK_R": 16, "BLOCK_N": 128, "num_warps": 8}
    if tile > 1:
        return {"BLOCK_R": 16, "BLOCK_N": 512 // b.element_size(), "num_warps": 4}
    return {"BLOCK_R": 16, "BLOCK_N": 1024 // b.element_size(), "num_warps": 2}


def plan(
    inner: Tensor,
    b: Tensor,
    y: Tensor,
    starts: Tensor,
    rows: Tensor,
    scales: Tensor,
    shifts: Tensor,
    ranks: Tensor,
    order: Tensor,
    tiles: Tensor,
    bounds: tuple[int, ...],
    tile: int,
    joins: bool = False,
    config: Config | None = None,
) -> Plan:
    """Plan y += B (scale inner + shift), in place, for y [T, N] and b [R, N].

    inner [splits, T, P, W] float32, rows, ranks, order and tiles as of `lora_shrink`; scales and
    shifts [V, W] float32. Part p are the outputs bounds[p] : bounds[p + 1], as `starts` [P + 1]
    int32 says on the device. joins: see `Launch`.
    """
    splits, num_places, parts, width = inner.shape
    check_limits("lora_expand", LIMITS, tile=tile, parts=parts)
    assert y.stride(1) == 1, "the outputs of a row are adjacent"
    assert b.is_contiguous(), "rank rows lie one after the other"
    config = config or default(tile, b)
    blocks = sum(cdiv(bounds[p + 1] - bounds[p], config["BLOCK_N"]) for p in range(parts))
    arguments = {
        "inner": inner,
        "b": b,
        "y": y,
        "starts": starts,
        "rows": rows,
        "scales": scales,
        "shifts": shifts,
        "ranks": ranks,
        "order": order,
        "tiles": tiles,
        "num_outputs": b.shape[1],
        "num_places": num_places,
        "width": width,
        "y_stride": y.stride(0),
        "SPLITS": splits,
        "SPLITS_2": power_of_2(splits),
        "PARTS": parts,
        "TILE": tile if tile == 1 else max(16, tile),
        "EARLY": starts_early(y.device),
        "EVEN": all(bound % config["BLOCK_N"] == 0 for bound in bounds),
        "UPCAST": INTERPRETED,
    }
    grid = (len(tiles), blocks)
    return Plan((Launch(lora_expand_kernel, grid, arguments, config, joins),), y)


def make_inputs(
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    counts: list[int],
    ranks: list[int],
    bounds: tuple[int, ...],
    splits: int = 1,
    tile: int = 16,
) -> Inputs:
    """Return a mixed batch with products of spread 1; a rank row adds something constant."""
    generator = torch.Generator(device).manual_seed(seed)
    made = make_mix(device, generator, counts, ranks, tile)
    places, (variants, width) = len(made["order"]), made["rows"].shape

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    shifts = torch.zeros(variants, width, device=device)
    shifts[0, ranks[0] - 1] = 0.5
    return {
        "inner": noise(splits, places, len(bounds) - 1, width),
        "b": noise(sum(ranks), bounds[-1]).div_(max(ranks) ** 0.5).to(dtype),
        "y": noise(places, bounds[-1]).to(dtype),
        "starts": torch.tensor(bounds, dtype=torch.int32, device=device),
        "scales": noise(variants, width),
        "shifts": shifts,
        **made,
        "bounds": bounds,
        "tile": tile,
    }


def flops(**inputs: Any) -> int:
    """Return multiplications and additions of all tokens with their rank rows."""
    return int(multiply_adds(inputs, inputs["b"].shape[1]))


def num_bytes(**inputs: Any) -> int:
    """Return bytes: the rank rows in use once, and the outputs in and out."""
    b, moved = inputs["b"], used_rows(inputs) + 2 * num_tokens(inputs)
    return int(moved * b.shape[1] * b.element_size())


def keep(config: Config, inputs: Inputs) -> bool:
    """Whether a configuration fits the registers."""
    return bool(max(16, inputs["tile"]) * config["BLOCK_N"] <= 8192 * config["num_warps"])


_QKV = {"bounds": (0, 4096, 5120, 6144), "splits": 8}
_GATE_UP = {"bounds": (0, 14336, 28672), "splits": 8}
_MIXED = {"counts": [1] * 32, "ranks": [16] * 32, "tile": 1}
_EIGHTS = {"counts": [8] * 32, "ranks": [16] * 32}
_RANKS = {"counts": [1] * 32, "ranks": [8, 16, 32, 64] * 8, "tile": 1}

SPEC = KernelSpec(
    name="lora_expand",
    summary="y += B (A x) of LoRA for a batch of mixed adapters and ranks",
    reference=reference,
    plan=plan,
    make_inputs=make_inputs,
    cases={
        "one token, rank 1": Case({"counts": [1], "ranks": [1], "bounds": (0, 64)}),
        "mixed ranks, odd parts": Case(
            {"counts": [3, 1, 17], "ranks": [8, 20, 3], "bounds": (0, 70, 75, 300)}
        ),
        "split": Case({"counts": [2, 1], "ranks": [4, 16], "bounds": (0, 40, 80), "splits": 3}),
        "even parts": Case({"counts": [2, 3], "ranks": [4, 16], "bounds": (0, 512, 1024)}),
        "tokens alone": Case(
            {
                "counts": [1, 2, 1],
                "ranks": [4, 16, 20],
                "bounds": (0, 40, 80, 300),
                "splits": 3,
                "tile": 1,
            }
        ),
        "wide tiles": Case({"counts": [40, 70], "ranks": [4, 9], "bounds": (0, 64), "tile": 64}),
        "llama-8b gate_up b1": Case(
            {"counts": [1], "ranks": [16], "tile": 1, **_GATE_UP}, small=False, quick=True
        ),
        "llama-8b gate_up b32": Case({**_MIXED, **_GATE_UP}, small=False, quick=True),
        "llama-8b qkv b32, mixed": Case({**_RANKS, **_QKV, "splits": 4}, small=False),
        "llama-8b gate_up b256": Case({**_EIGHTS, **_GATE_UP}, small=False),
        "llama-8b gate_up prefill": Case(
            {"counts": [512] * 4, "ranks": [16] * 4, **_GATE_UP, "tile": 64}, small=False
        ),
    },
    space={"BLOCK_R": (16, 32), "BLOCK_N": (64, 128, 256, 512, 1024), "num_warps": (1, 2, 4, 8)},
    keep=keep,
    default=default,
    bucket=lambda **i: (
        f"o{i['b'].shape[1]} p{len(i['starts']) - 1} t{i['tile']} n{len(i['tiles'])}"
    ),
    flops=flops,
    num_bytes=num_bytes,
    tolerance={
        torch.float32: (1e-4, 1e-4),
        torch.float16: (4e-3, 4e-3),
        torch.bfloat16: (2e-2, 3e-2),
    },
    limits=LIMITS,
    sources=("lora_math.py",),
)
