"""The gated activation of a feed-forward layer: act(gate) * up from one [T, 2N] matrix.

Memory-bound: 2N read and N written a row. `activation` is "silu" (Llama, Qwen), "gelu" (by the
error function) or "gelu_tanh" (its approximation, Gemma). The activation is rounded to the tensors'
dtype before the product, as torch does it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from workbench.errors import ConfigError
from workbench.kernels.early import await_previous, starts_early
from workbench.kernels.launch import Config, Launch, Plan, cdiv, power_of_2
from workbench.kernels.spec import Case, Inputs, KernelSpec, check_limits

LIMITS = {"width": (1, 1 << 22)}
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


@triton.jit
def silu_mul_kernel(
    gate_up, out, width, row_stride,
    EARLY: tl.constexpr, GELU: tl.constexpr, TANH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill BLOCK columns of one row of out [T, width]."""
    await_previous(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    source = gate_up + row * row_stride + columns
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        active = gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    elif TANH:
        # x * (1 + tanh(u)) / 2 is x * sigmoid(2u), with u = sqrt(2/pi) (x + 0.044715 x^3)
        active = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        active = gate * tl.sigmoid(gate)
    active = active.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + columns, (active * up).to(out.dtype.element_ty), mask=inside)


def reference(gate_up: Tensor, activation: str = "silu") -> Tensor:
    """Return act(gate) * up [T, N] of gate_up [T, 2N] = [gate | up]."""
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up


def default(gate_up: Tensor, **_: Any) -> Config:
    """Return a configuration that is good everywhere: 8 elements a thread."""
    block = min(1024, power_of_2(gate_up.shape[1] // 2))
    return {"BLOCK": block, "num_warps": max(1, min(4, block // 256))}


def plan(gate_up: Tensor, activation: str = "silu", config: Config | None = None) -> Plan:
    """Plan act(gate) * up for gate_up [T, 2N]; rows may be strided."""
    if activation not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        raise ConfigError("activation", activation, "no such activation", f"Known: {known}.")
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    check_limits("silu_mul", LIMITS, width=width)
    assert gate_up.stride(1) == 1, "the elements of a row are adjacent"
    config = config or default(gate_up)
    out = torch.empty((num_rows, width), dtype=gate_up.dtype, device=gate_up.device)
    arguments = {
        "gate_up": gate_up,
        "out": out,
        "width": width,
        "row_stride": gate_up.stride(0),
        "EARLY": starts_early(gate_up.device),
        "GELU": activation == "gelu",
        "TANH": activation == "gelu_tanh",
    }
    grid = (num_rows, cdiv(width, config["BLOCK"]))
    launches = (Launch(silu_mul_kernel, grid, arguments, config),) if num_rows else ()
    return Plan(launches, out)


def make_inputs(
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    rows: int,
    width: int,
    activation: str = "silu",
    strided: bool = False,
) -> Inputs:
    """Return gate_up [rows, 2 * width] of spread 3, as a strided slice if asked for."""
    generator = torch.Generator(device).manual_seed(seed)
    columns = 2 * width + (5 if strided else 0)
    noise = (torch.randn((rows, columns), generator=generator, device=device) * 3).to(dtype)
    return {"gate_up": noise[:, : 2 * width], "activation": activation}


SPEC = KernelSpec(
    name="silu_mul",
    summary="silu(gate) * up, or gelu(gate) * up",
    reference=reference,
    plan=plan,
    make_inputs=make_inputs,
    cases={
        "one element": Case({"rows": 1, "width": 1}),
        "odd width": Case({"rows": 5, "width": 107}),
        "gelu": Case({"rows": 3, "width": 70, "activation": "gelu"}),
        "gelu by tanh": Case({"rows": 3, "width": 70, "activation": "gelu_tanh"}),
        "strided rows": Case({"rows": 3, "width": 33, "strided": True}),
        "no rows": Case({"rows": 0, "width": 64}),
        "tinypy decode": Case({"rows": 4, "width": 1280}),
        "llama-1b decode 64": Case({"rows": 64, "width": 8192}, small=False),
        "llama-8b decode 1": Case({"rows": 1, "width": 14336}, small=False, quick=True),
        "llama-8b decode 32": Case({"rows": 32, "width": 14336}, small=False, quick=True),
        "llama-8b decode 256": Case({"rows": 256, "width": 14336}, small=False),
        "llama-8b prefill 8k": Case({"rows": 8192, "width": 14336}, small=False, quick=True),
    },
    space={"BLOCK": (64, 128, 256, 512, 1024, 2048, 4096), "num_warps": (1, 2, 4, 8)},
    keep=lambda config, inputs: (
        64 <= config["BLOCK"] // config["num_warps"] <= 1024
        and config["BLOCK"] < 4 * power_of_2(inputs["gate_up"].shape[1] // 2)
    ),
    default=default,
    bucket=lambda gate_up, activation="silu", **_: (
        f"width {gate_up.shape[1] // 2} rows {power_of_2(min(gate_up.shape[0], 4096))}"
        f"{'' if activation == 'silu' else ' ' + activation}"
    ),
    flops=lambda gate_up, **_: 5 * gate_up.numel() // 2,
    num_bytes=lambda gate_up, **_: 3 * gate_up.numel() // 2 * gate_up.element_size(),
    tolerance={
        torch.float32: (1e-5, 5e-6),  # 1 + erf of a negative number leaves few digits
        torch.float16: (2e-3, 2e-3),
        torch.bfloat16: (1.6e-2, 1.6e-2),
    },
    limits=LIMITS,
)


def silu_mul(gate_up: Tensor, activation: str = "silu", *, config: Any = None) -> Tensor:
    """Return act(gate) * up [T, N] of gate_up [T, 2N]."""
    out: Tensor = plan(gate_up, activation, config).run()
    return out
