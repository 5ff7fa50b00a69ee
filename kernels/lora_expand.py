"""y += B (scale (A x) + shift) for a mixed batch: the second half of each token's LoRA adapter.

Takes what `lora_shrink` found, adds its splits up, and adds to the outputs in place; a token that
goes through no adapter is not touched. All parts of a fused projection are done in one launch, each
with its own products. Only a variant's own rank rows are read.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels.launch import INTERPRETED, Config, Launch, Plan, cdiv
from workbench.kernels.lora_shrink import make_batch
from workbench.kernels.spec import Case, Inputs, KernelSpec, check_limits

LIMITS = {"tile": (1, 64), "parts": (1, 3)}


@triton.jit
def lora_expand_kernel(
    inner, b, y, starts, rows, scales, shifts, ranks, order, tiles, num_outputs, num_places, width,
    y_stride, SPLITS: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr, EVEN: tl.constexpr,
    UPCAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add to BLOCK_N outputs of a tile's tokens; they lie in one part."""
    tile, block = tl.program_id(0), tl.program_id(1)
    variant = tl.load(tiles + tile * 3)
    first = tl.load(tiles + tile * 3 + 1)
    count = tl.load(tiles + tile * 3 + 2)
    if count == 0:
        return
    part, begin, end = 0, 0, 0
    for p in tl.static_range(PARTS):  # the block-th of all parts' blocks, counted one after another
        low, high = tl.load(starts + p), tl.load(starts + p + 1)
        blocks = (high - low + BLOCK_N - 1) // BLOCK_N
        here = (block >= 0) & (block < blocks)
        part = tl.where(here, p, part)
        begin = tl.where(here, low + block * BLOCK_N, begin)
        end = tl.where(here, high, end)
        block -= blocks
    rank = tl.load(ranks + variant)
    if EVEN:
        begin = tl.multiple_of(begin, 16)
    tokens, outputs = tl.arange(0, TILE), begin + tl.arange(0, BLOCK_N)
    known, inside = tokens < count, (outputs < end) | EVEN
    acc = tl.zeros([TILE, BLOCK_N], tl.float32)
    for start in range(0, rank, BLOCK_R):
        columns = start + tl.arange(0, BLOCK_R)
        wanted = columns < rank
        listed = variant * width + columns
        row = tl.load(rows + listed, mask=wanted, other=0).to(tl.int64)
        products = tl.zeros([TILE, BLOCK_R], tl.float32)
        for split in tl.static_range(SPLITS):
            place = (split * num_places + first + tokens).to(tl.int64) * PARTS + part
            products += tl.load(
                inner + place[:, None] * width + columns[None, :],
                mask=known[:, None] & wanted[None, :],
                other=0.0,
            )
        scale = tl.load(scales + listed, mask=wanted, other=0.0)
        shift = tl.load(shifts + listed, mask=wanted, other=0.0)
        products = products * scale[None, :] + shift[None, :]
        places = b + row[:, None] * num_outputs + outputs[None, :]
        if EVEN:
            weights = tl.load(places, mask=wanted[:, None], other=0.0)
        else:
            weights = tl.load(places, mask=wanted[:, None] & inside[None, :], other=0.0)
        if UPCAST:
            weights = weights.to(tl.float32)
        acc = tl.dot(products.to(weights.dtype), weights, acc, input_precision="ieee")
    token = tl.load(order + first + tokens, mask=known, other=0).to(tl.int64)
    out = y + token[:, None] * y_stride + outputs[None, :]
    mask = known[:, None] if EVEN else known[:, None] & inside[None, :]
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


def default(tile: int, **_: Any) -> Config:
    """Return blocks wide enough that a program has some work."""
    if tile > 16:
        return {"BLOCK_R": 16, "BLOCK_N": 128, "num_warps": 8}
    return {"BLOCK_R": 16, "BLOCK_N": 256, "num_warps": 4}


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
    config: Config | None = None,
) -> Plan:
    """Plan y += B (scale inner + shift), in place, for y [T, N] and b [R, N].

    inner [splits, T, P, W] float32, rows, ranks, order and tiles as of `lora_shrink`; scales and
    shifts [V, W] float32. Part p are the outputs bounds[p] : bounds[p + 1], as `starts` [P + 1]
    int32 says on the device.
    """
    splits, num_places, parts, width = inner.shape
    check_limits("lora_expand", LIMITS, tile=tile, parts=parts)
    assert y.stride(1) == 1, "the outputs of a row are adjacent"
    assert b.is_contiguous(), "rank rows lie one after the other"
    config = config or default(tile)
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
        "PARTS": parts,
        "TILE": max(16, tile),
        "EVEN": all(bound % config["BLOCK_N"] == 0 for bound in bounds),
        "UPCAST": INTERPRETED,
    }
    launch = Launch(lora_expand_kernel, (len(tiles), blocks), arguments, config)
    return Plan((launch,), y)


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
    made = make_batch(device, generator, counts, ranks, tile)
    num_tokens, (variants, width) = len(made["order"]), made["rows"].shape

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    shifts = torch.zeros(variants, width, device=device)
    shifts[0, ranks[0] - 1] = 0.5
    return {
        "inner": noise(splits, num_tokens, len(bounds) - 1, width),
        "b": noise(sum(ranks), bounds[-1]).div_(max(ranks) ** 0.5).to(dtype),
        "y": noise(num_tokens, bounds[-1]).to(dtype),
        "starts": torch.tensor(bounds, dtype=torch.int32, device=device),
        "scales": noise(variants, width),
        "shifts": shifts,
        **made,
        "bounds": bounds,
        "tile": tile,
    }


def flops(**inputs: Any) -> int:
    """Return multiplications and additions of all tokens with their rank rows."""
    ranks, size = inputs["ranks"].tolist(), inputs["b"].shape[1]
    return sum(2 * ranks[v] * count * size for v, _, count in inputs["tiles"].tolist())


def num_bytes(**inputs: Any) -> int:
    """Return bytes: the rank rows in use once, and the outputs in and out."""
    b, y, tiles = inputs["b"], inputs["y"], inputs["tiles"].tolist()
    ranks = inputs["ranks"].tolist()
    used = sum(ranks[v] for v in {v for v, _, count in tiles if count})
    tokens = sum(count for _, _, count in tiles)
    return int((used + 2 * tokens) * b.shape[1] * y.element_size())


def keep(config: Config, inputs: Inputs) -> bool:
    """Whether a configuration fits the registers."""
    return bool(max(16, inputs["tile"]) * config["BLOCK_N"] <= 4096 * config["num_warps"])


_QKV, _GATE_UP = (0, 4096, 5120, 6144), (0, 14336, 28672)
_MIXED = {"counts": [1] * 32, "ranks": [16] * 32}

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
        "wide tiles": Case({"counts": [40, 70], "ranks": [4, 9], "bounds": (0, 64), "tile": 64}),
        "llama-8b gate_up b1": Case(
            {"counts": [1], "ranks": [16], "bounds": _GATE_UP, "splits": 8},
            small=False,
            quick=True,
        ),
        "llama-8b gate_up b32": Case(
            {**_MIXED, "bounds": _GATE_UP, "splits": 2}, small=False, quick=True
        ),
        "llama-8b qkv b32, mixed": Case(
            {"counts": [1] * 32, "ranks": [8, 16, 32, 64] * 8, "bounds": _QKV, "splits": 2},
            small=False,
        ),
        "llama-8b gate_up prefill": Case(
            {"counts": [512] * 4, "ranks": [16] * 4, "bounds": _GATE_UP, "tile": 64},
            small=False,
        ),
    },
    space={"BLOCK_R": (16, 32), "BLOCK_N": (64, 128, 256, 512), "num_warps": (2, 4, 8)},
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
    sources=("lora_shrink.py",),
)
