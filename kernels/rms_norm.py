"""RMS normalisation of rows, with the residual add in front of it when there is one.

Memory-bound: with a residual a row is read twice (x, residual) and written twice (norm, sum). Each
program holds ROWS whole rows in registers, so nothing is read again. Statistics are float32, and
roundings fall where the definition has them (the sum, and the normalised row before the weight).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels.early import await_previous, starts_early
from workbench.kernels.launch import Config, Launch, Plan, cdiv, power_of_2
from workbench.kernels.spec import Case, Inputs, KernelSpec, check_limits

LIMITS = {"width": (1, 32768)}


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    x, residual, weight, out, total, num_rows, width, x_stride, residual_stride, eps,
    EARLY: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Normalise ROWS rows of [num_rows, width]; total is x + residual, rounded."""
    await_previous(EARLY)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
    wide = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0)
    wide = wide.to(tl.float32)
    place = rows[:, None] * width + columns[None, :]
    if HAS_RESIDUAL:
        added = tl.load(
            residual + rows[:, None] * residual_stride + columns[None, :], mask=inside, other=0.0
        )
        wide += added.to(tl.float32)
        rounded = wide.to(total.dtype.element_ty)
        tl.store(total + place, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / width + eps)
    normed = (wide * scale[:, None]).to(out.dtype.element_ty).to(tl.float32)
    gain = tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)
    tl.store(out + place, (normed * gain[None, :]).to(out.dtype.element_ty), mask=inside)


def reference(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Any:
    """Return the norm [T, N], or (norm, x + residual) if there is a residual."""
    total = x if residual is None else x + residual
    wide = total.float()
    normed = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    return normed if residual is None else (normed, total)


def default(x: Tensor, **_: Any) -> Config:
    """Return a configuration that is good everywhere: about 16 elements a thread."""
    block = power_of_2(x.shape[1])
    return {"ROWS": max(1, min(4, 1024 // block)), "num_warps": max(1, min(16, block // 512))}


def plan(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    config: Config | None = None,
) -> Plan:
    """Plan rms_norm over x [T, N] (rows may be strided): out, or (out, x + residual)."""
    num_rows, width = x.shape
    check_limits("rms_norm", LIMITS, width=width)
    assert x.stride(1) == 1, "the elements of a row are adjacent"
    assert residual is None or residual.stride(1) == 1, "the elements of a row are adjacent"
    config = config or default(x)
    out = torch.empty((num_rows, width), dtype=x.dtype, device=x.device)
    total = None if residual is None else torch.empty_like(out)
    arguments = {
        "x": x,
        "residual": residual,
        "weight": weight,
        "out": out,
        "total": total,
        "num_rows": num_rows,
        "width": width,
        "x_stride": x.stride(0),
        "residual_stride": 0 if residual is None else residual.stride(0),
        "eps": eps,
        "EARLY": starts_early(x.device),
        "HAS_RESIDUAL": residual is not None,
        "BLOCK": power_of_2(width),
    }
    grid = (cdiv(num_rows, config["ROWS"]),)
    launches = (Launch(rms_norm_kernel, grid, arguments, config),) if num_rows else ()
    return Plan(launches, out if residual is None else (out, total))


def make_inputs(
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    rows: int,
    width: int,
    fused: bool = True,
    strided: bool = False,
) -> Inputs:
    """Return x [rows, width] of spread 5, as a strided slice if asked for."""
    generator = torch.Generator(device).manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    x = noise(rows, width + 8)[:, 3 : width + 3] if strided else noise(rows, width)
    inputs: Inputs = {"x": x * 5 if not strided else x, "weight": noise(width), "eps": 1e-5}
    return inputs | ({"residual": noise(rows, width)} if fused else {})


def num_bytes(x: Tensor, weight: Tensor, residual: Tensor | None = None, **_: Any) -> int:
    """Return bytes read and written once: two tensors of x's size, or four with a residual."""
    return (2 if residual is None else 4) * x.numel() * x.element_size() + weight.nbytes


SPEC = KernelSpec(
    name="rms_norm",
    summary="RMS norm of rows with a fused residual add",
    reference=reference,
    plan=plan,
    make_inputs=make_inputs,
    cases={
        "one element": Case({"rows": 1, "width": 1}),
        "odd width": Case({"rows": 7, "width": 130}),
        "no residual": Case({"rows": 3, "width": 64, "fused": False}),
        "strided rows": Case({"rows": 5, "width": 33, "strided": True, "fused": False}),
        "no rows": Case({"rows": 0, "width": 64}),
        "tinypy decode": Case({"rows": 16, "width": 512}),
        "llama-1b decode 64": Case({"rows": 64, "width": 2048}, small=False),
        "llama-8b decode 1": Case({"rows": 1, "width": 4096}, small=False, quick=True),
        "llama-8b decode 32": Case({"rows": 32, "width": 4096}, small=False, quick=True),
        "llama-8b decode 256": Case({"rows": 256, "width": 4096}, small=False),
        "llama-8b prefill 8k": Case({"rows": 8192, "width": 4096}, small=False, quick=True),
    },
    space={"ROWS": (1, 2, 4, 8), "num_warps": (1, 2, 4, 8, 16)},
    keep=lambda config, inputs: (
        128 <= config["ROWS"] * power_of_2(inputs["x"].shape[1]) // config["num_warps"] <= 4096
    ),
    default=default,
    bucket=lambda x, residual=None, **_: (
        f"width {x.shape[1]} rows {power_of_2(min(x.shape[0], 4096))}"
        f"{'' if residual is None else ' +residual'}"
    ),
    flops=lambda x, residual=None, **_: (4 if residual is None else 5) * x.numel(),
    num_bytes=num_bytes,
    tolerance={
        torch.float32: (1e-5, 1e-5),
        torch.float16: (2e-3, 2e-3),
        torch.bfloat16: (1.6e-2, 1.6e-2),
    },
    limits=LIMITS,
)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, *, config: Any = None
) -> Any:
    """Return the norm of x [T, N], or (norm, x + residual)."""
    return plan(x, weight, eps, residual, config).run()
