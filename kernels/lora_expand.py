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

from workbench.kernels import lora_mixes as mixes
from workbench.kernels.early import await_previous, load_ahead, starts_early
from workbench.kernels.launch import INTERPRETED, Config, Launch, Plan, cdiv, power_of_2
from workbench.kernels.lora_math import (
    add_block,
    add_dot,
    products_of_one,
    products_of_tile,
    rank_rows,
    row_weights,
    span_of,
)
from workbench.kernels.spec import Case, Inputs, KernelSpec, check_limits

LIMITS = {"tile": (1, 64), "parts": (1, 3)}
_PROGRAMS = 396  # three on each multiprocessor of an H100 or H200


@triton.jit(do_not_specialize=["num_places"])
def lora_expand_kernel(
    inner, b, y, starts, rows, scales, shifts, ranks, order, tiles, num_outputs, num_places, width,
    y_stride, SPLITS: tl.constexpr, SPLITS_2: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr,
    WIDE: tl.constexpr, EARLY: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Add to BLOCKS * BLOCK_N outputs of a tile's tokens; they lie in one part."""
    tile, columns = tl.program_id(0), tl.arange(0, BLOCK_R)
    variant = load_ahead(tiles + tile * 3)
    first = load_ahead(tiles + tile * 3 + 1)
    count = load_ahead(tiles + tile * 3 + 2)
    part, begin, end = span_of(starts, tl.program_id(1), PARTS, EVEN, BLOCKS * BLOCK_N)
    end = tl.minimum(end, begin + BLOCKS * BLOCK_N)
    rank = load_ahead(ranks + variant)
    wanted, listed = (columns < rank) & (count > 0), variant * width
    row, scale, shift = rank_rows(rows, scales, shifts, listed + columns, wanted)
    tokens = tl.arange(0, TILE)
    known = tokens < count
    token = load_ahead(order + first + tokens, mask=known, other=0).to(tl.int64)
    out, step = y + token[:, None] * y_stride, num_places * PARTS * width
    found = inner + (first + tokens) * PARTS * width + part * width
    if TILE == 1:
        outputs = begin + tl.arange(0, BLOCK_N)
        weights = row_weights(b, row, num_outputs, outputs, end, wanted, EVEN)
    await_previous(EARLY)
    if count == 0:
        return
    if TILE == 1:
        mask = known[:, None] if EVEN else known[:, None] & (outputs < end)[None, :]
        acc = tl.load(out + outputs[None, :], mask=mask, other=0.0).to(tl.float32)
        sums = products_of_one(found, step, columns, wanted, SPLITS, SPLITS_2)
        acc += tl.sum(weights.to(tl.float32) * (sums * scale + shift)[:, None], axis=0)
        if WIDE:
            for place in tl.range(BLOCK_R, rank, BLOCK_R, num_stages=1):
                columns = place + tl.arange(0, BLOCK_R)
                wanted = columns < rank
                row, scale, shift = rank_rows(rows, scales, shifts, listed + columns, wanted)
                weights = row_weights(b, row, num_outputs, outputs, end, wanted, EVEN)
                sums = products_of_one(found, step, columns, wanted, SPLITS, SPLITS_2)
                acc += tl.sum(weights.to(tl.float32) * (sums * scale + shift)[:, None], axis=0)
        tl.store(out + outputs[None, :], acc.to(y.dtype.element_ty), mask=mask)
    else:
        factors = products_of_tile(found, step, columns, known, wanted, SPLITS) * scale + shift
        for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
            outputs = start + tl.arange(0, BLOCK_N)
            mask = known[:, None] if EVEN else known[:, None] & (outputs < end)[None, :]
            before = tl.load(out + outputs[None, :], mask=mask, other=0.0)
            weights = row_weights(b, row, num_outputs, outputs, end, wanted, EVEN)
            acc = add_dot(factors, weights, tl.zeros([TILE, BLOCK_N], tl.float32), UPCAST)
            if WIDE:
                for place in tl.range(BLOCK_R, rank, BLOCK_R, num_stages=1):
                    acc = add_block(
                        acc, found, step, b, rows, scales, shifts, listed, place, rank, outputs,
                        end, num_outputs, known, SPLITS, EVEN, UPCAST, BLOCK_R,
                    )  # fmt: skip
            acc += before.to(tl.float32)
            tl.store(out + outputs[None, :], acc.to(y.dtype.element_ty), mask=mask)


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


def default(tile: int, b: Tensor, rows: Tensor, tiles: Tensor, **_: Any) -> Config:
    """Return blocks that are read at once for a token alone, else one after the other."""
    if tile == 1:
        whole = {"BLOCK_N": 1024 // b.element_size(), "BLOCKS": 1, "STAGES": 1}
        return {"BLOCK_R": 16, **whole, "num_warps": 2}
    block_r, warps = min(64, rows.shape[1]), 4 if tile <= 16 else 8
    block_n = max(64, 32768 // (b.element_size() * block_r * warps))
    most = max(1, min(8, cdiv(b.shape[1], block_n) * len(tiles) // _PROGRAMS))
    blocks = 1 << (most.bit_length() - 1)
    whole = {"BLOCK_N": block_n, "BLOCKS": blocks, "STAGES": 4}
    return {"BLOCK_R": block_r, **whole, "num_warps": warps}


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
    config = config or default(tile, b, rows, tiles)
    assert tile > 1 or config["BLOCKS"] == 1, "a token alone has its rank rows in registers"
    span = config["BLOCKS"] * config["BLOCK_N"]
    grid = len(tiles), sum(cdiv(bounds[p + 1] - bounds[p], span) for p in range(parts))
    table = {"rows": rows, "scales": scales, "shifts": shifts, "ranks": ranks}
    arguments = {
        **{"inner": inner, "b": b, "y": y, "starts": starts},
        **{**table, "order": order, "tiles": tiles},
        "num_outputs": b.shape[1],
        "num_places": num_places,
        "width": width,
        "y_stride": y.stride(0),
        "SPLITS": splits,
        "SPLITS_2": power_of_2(splits),
        "PARTS": parts,
        "TILE": tile if tile == 1 else max(16, tile),
        "WIDE": width > config["BLOCK_R"],
        "EARLY": starts_early(y.device),
        "EVEN": all(bound % config["BLOCK_N"] == 0 for bound in bounds),
        "UPCAST": INTERPRETED,
    }
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
    made = mixes.make_mix(device, generator, counts, ranks, tile)
    places, (variants, width) = len(made["order"]), made["rows"].shape

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    shifts = torch.zeros(variants, width, device=device)
    shifts[0, ranks[0] - 1] = 0.5
    return {
        "inner": noise(splits, places, len(bounds) - 1, width).div_(splits**0.5),
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
    return int(mixes.multiply_adds(inputs, inputs["b"].shape[1]))


def num_bytes(**inputs: Any) -> int:
    """Return bytes: the rank rows in use once, and the outputs in and out."""
    b, moved = inputs["b"], mixes.used_rows(inputs) + 2 * mixes.num_tokens(inputs)
    return int(moved * b.shape[1] * b.element_size())


def keep(config: Config, inputs: Inputs) -> bool:
    """Whether a configuration fits the registers and the shared memory."""
    tile, size = inputs["tile"], inputs["b"].element_size()
    weights = config["BLOCK_R"] * config["BLOCK_N"]
    if tile == 1:
        in_registers = weights * size <= 16384 * config["num_warps"]
        return bool(config["BLOCKS"] == config["STAGES"] == 1 and in_registers)
    fits = max(16, tile) * config["BLOCK_N"] <= 4096 * config["num_warps"]
    return bool(fits and weights * size * config["STAGES"] <= 96 << 10)


_QKV = {"bounds": (0, 4096, 5120, 6144), "splits": 8}
_GATE_UP = {"bounds": (0, 14336, 28672), "splits": 8}

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
        "llama-8b gate_up b32": Case({**mixes.MIXED, **_GATE_UP}, small=False, quick=True),
        "llama-8b qkv b32, mixed": Case({**mixes.RANKS, **_QKV, "splits": 4}, small=False),
        "llama-8b gate_up b256": Case({**mixes.EIGHTS, **_GATE_UP}, small=False),
        "llama-8b gate_up prefill": Case(
            {"counts": [512] * 4, "ranks": [16] * 4, **_GATE_UP, "tile": 64}, small=False
        ),
    },
    space={
        "BLOCK_R": (16, 64),
        "BLOCK_N": (64, 128, 256, 512, 1024),
        "BLOCKS": (1, 2, 4, 8),
        "STAGES": (1, 3, 4),
        "num_warps": (1, 2, 4),
    },
    keep=keep,
    default=default,
    bucket=lambda **i: (
        f"o{i['b'].shape[1]} p{len(i['starts']) - 1} t{i['tile']} n{power_of_2(len(i['tiles']))}"
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
