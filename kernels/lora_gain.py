"""y = gain y + shift for a mixed batch: what DoRA makes of a layer's outputs, adapters included.

A variant of the batch has a row of gains or none; the tokens of those without, and of no variant,
are not touched. Memory-bound: a token's outputs in and out, a variant's gains once a tile.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels.launch import Config, Launch, Plan, cdiv
from workbench.kernels.lora_mixes import make_mix
from workbench.kernels.spec import Case, Inputs, KernelSpec, check_limits

LIMITS = {"tile": (1, 64)}


@triton.jit
def lora_gain_kernel(
    y, gain, shift, places, order, tiles, num_outputs, y_stride,
    SHIFTED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Multiply BLOCK_N outputs of a tile's tokens, one token after the other."""
    tile = tl.program_id(0)
    variant = tl.load(tiles + tile * 3)
    first = tl.load(tiles + tile * 3 + 1)
    count = tl.load(tiles + tile * 3 + 2)
    place = tl.load(places + variant).to(tl.int64)
    if place < 0:
        count = 0
    outputs = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = outputs < num_outputs
    kept = inside & (count > 0)
    factors = tl.load(gain + place * num_outputs + outputs, mask=kept, other=0.0)
    if SHIFTED:
        added = tl.load(shift + place * num_outputs + outputs, mask=kept, other=0.0)
    for i in range(0, count):
        token = tl.load(order + first + i).to(tl.int64)
        out = y + token * y_stride + outputs
        value = tl.load(out, mask=inside, other=0.0).to(tl.float32) * factors
        if SHIFTED:
            value += added
        tl.store(out, value.to(y.dtype.element_ty), mask=inside)


def reference(
    y: Tensor,
    gain: Tensor,
    shift: Tensor | None,
    places: Tensor,
    order: Tensor,
    tiles: Tensor,
    tile: int,
) -> Tensor:
    """Return y with the outputs of every tile's tokens scaled and shifted in float32."""
    y = y.clone()
    for variant, first, count in tiles.tolist():
        place = int(places[variant])
        if place >= 0:
            tokens = order[first : first + count].long()
            value = y[tokens].float() * gain[place]
            y[tokens] = (value if shift is None else value + shift[place]).to(y.dtype)
    return y


def default(tile: int, **_: Any) -> Config:
    """Return a configuration that is good everywhere: 8 outputs a thread."""
    return {"BLOCK_N": 1024, "num_warps": 4}


def plan(
    y: Tensor,
    gain: Tensor,
    shift: Tensor | None,
    places: Tensor,
    order: Tensor,
    tiles: Tensor,
    tile: int,
    config: Config | None = None,
) -> Plan:
    """Plan y = gain y + shift, in place, for y [T, N], and gain and shift [G, N] float32.

    places [V] int32: the row of each variant, negative for one that has none. order and tiles as of
    `lora_shrink`.
    """
    check_limits("lora_gain", LIMITS, tile=tile)
    assert y.stride(1) == 1, "the outputs of a row are adjacent"
    assert gain.is_contiguous(), "gains lie one after the other"
    config = config or default(tile)
    arguments = {
        "y": y,
        "gain": gain,
        "shift": shift,
        "places": places,
        "order": order,
        "tiles": tiles,
        "num_outputs": y.shape[1],
        "y_stride": y.stride(0),
        "SHIFTED": shift is not None,
    }
    grid = (len(tiles), cdiv(y.shape[1], config["BLOCK_N"]))
    launches = (Launch(lora_gain_kernel, grid, arguments, config),) if len(tiles) else ()
    return Plan(launches, y)


def make_inputs(
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    counts: list[int],
    outputs: int,
    shifted: bool = False,
    tile: int = 16,
) -> Inputs:
    """Return a mixed batch in which every second variant, from the first on, has gains."""
    generator = torch.Generator(device).manual_seed(seed)
    made = make_mix(device, generator, counts, [1] * len(counts), tile)
    num_tokens, rows = len(made["order"]), -(-len(counts) // 2)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    places = [rows - 1 - v // 2 if v % 2 == 0 else -1 for v in range(len(counts))]
    return {
        "y": noise(num_tokens, outputs).to(dtype),
        "gain": 1 + noise(rows, outputs) / 4,
        "shift": noise(rows, outputs) if shifted else None,
        "places": torch.tensor(places, dtype=torch.int32, device=device),
        "order": made["order"],
        "tiles": made["tiles"],
        "tile": tile,
    }


def _scaled(places: Tensor, tiles: Tensor) -> tuple[int, int]:
    """Return how many variants have gains, and how many tokens these are."""
    used = [(v, count) for v, _, count in tiles.tolist() if count and int(places[v]) >= 0]
    return len({v for v, _ in used}), sum(count for _, count in used)


def flops(*, y: Tensor, places: Tensor, tiles: Tensor, **_: Any) -> int:
    """Return a multiplication and an addition for every output."""
    return 2 * _scaled(places, tiles)[1] * y.shape[1]


def num_bytes(*, y: Tensor, gain: Tensor, places: Tensor, tiles: Tensor, **_: Any) -> int:
    """Return bytes: the gains in use once, and the outputs in and out."""
    variants, tokens = _scaled(places, tiles)
    return y.shape[1] * (variants * gain.element_size() + 2 * tokens * y.element_size())


SPEC = KernelSpec(
    name="lora_gain",
    summary="y = gain y + shift of DoRA for a batch of mixed adapters",
    reference=reference,
    plan=plan,
    make_inputs=make_inputs,
    cases={
        "one token": Case({"counts": [1], "outputs": 64}),
        "mixed, odd": Case({"counts": [3, 1, 17, 2], "outputs": 1207}),
        "shifted": Case({"counts": [2, 5, 1], "outputs": 300, "shifted": True}),
        "wide tiles": Case({"counts": [40, 3, 70], "outputs": 96, "tile": 64}),
        "llama-8b gate_up b1": Case({"counts": [1], "outputs": 28672}, small=False, quick=True),
        "llama-8b gate_up b32": Case({"counts": [1] * 32, "outputs": 28672}, small=False),
        "llama-8b gate_up prefill": Case(
            {"counts": [512] * 4, "outputs": 28672, "tile": 64}, small=False, quick=True
        ),
    },
    space={"BLOCK_N": (256, 512, 1024, 2048), "num_warps": (2, 4, 8)},
    keep=lambda config, inputs: 64 <= config["BLOCK_N"] // config["num_warps"] <= 1024,
    default=default,
    bucket=lambda **i: f"o{i['y'].shape[1]} t{i['tile']} n{len(i['tiles'])}",
    flops=flops,
    num_bytes=num_bytes,
    tolerance={
        torch.float32: (1e-6, 1e-6),
        torch.float16: (1e-3, 1e-3),
        torch.bfloat16: (8e-3, 8e-3),
    },
    limits=LIMITS,
    sources=("lora_mixes.py",),
)
