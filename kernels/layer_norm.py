"""Layer normalisation of rows, with the residual add in front of it when there is one.

Memory-bound, as `rms_norm`: each program holds ROWS whole rows in registers, takes the mean, then
the spread around it (two sums over registers, no second read). Statistics are float32; the result
is rounded once, the sum before it where there is one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels.early import await_previous, starts_early
from workbench.kernels.launch import Config, Launch, Plan, cdiv, power_of_2
from workbench.kernels.spec import Case, Inputs, KernelSpec, check_limits

LIMITS = {"width": (1, 32768)}


@triton.jit(do_not_specialize=["num_rows"])
def layer_norm_kernel(
    x, residual, weight, bias, out, total, num_rows, width, x_stride, residual_stride, eps,
    EARLY: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Normalise ROWS rows of [num_rows, width]; total is x + residual, rounded."""
    await_previous(EARLY)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    known = columns < width
    inside = (rows < num_rows)[:, None] & known[None, :]
    wide = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0)
    wide = wide.to(tl.float32)
    place = rows[:, None] * width + columns[None, :]
    if residual is not None:
        added = tl.load(
            residual + rows[:, None] * residual_stride + columns[None, :], mask=inside, other=0.0
        )
        rounded = (wide + added.to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + place, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    mean = tl.sum(wide, axis=1) / width
    centred = tl.where(inside, wide - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1) / width + eps)
    gain = tl.load(weight + columns, mask=known, other=0.0).to(tl.float32)
    normed = centred * scale[:, None] * gain[None, :]
    if bias is not None:
        normed += tl.load(bias + columns, mask=known, other=0.0).to(tl.float32)[None, :]
    tl.store(out + place, normed.to(out.dtype.element_ty), mask=inside)


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
) -> Any:
    """Return the norm [T, N], or (norm, x + residual) if there is a residual."""
    total = x if residual is None else x + residual
    wide = None if bias is None else bias.float()
    normed = F.layer_norm(total.float(), weight.shape, weight.float(), wide, eps).to(x.dtype)
    return normed if residual is None else (normed, total)


def default(x: Tensor, **_: Any) -> Config:
    """Return a configuration that is good everywhere: about 16 elements a thread."""
    block = power_of_2(x.shape[1])
    return {"ROWS": max(1, min(4, 1024 // block)), "num_warps": max(1, min(16, block // 512))}


def plan(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    config: Config | None = None,
) -> Plan:
    """Plan layer_norm over x [T, N] (rows may be strided): out, or (out, x + residual)."""
    num_rows, width = x.shape
    check_limits("layer_norm", LIMITS, width=width)
    assert x.stride(1) == 1, "the elements of a row are adjacent"
    assert residual is None or residual.stride(1) == 1, "the elements of a row are adjacent"
    config = config or default(x)
    out = torch.empty((num_rows, width), dtype=x.dtype, device=x.device)
    total = None if residual is None else torch.empty_like(out)
    arguments = {
        "x": x,
        "residual": residual,
        "weight": weight,
        "bias": bias,
        "out": out,
        "total": total,
        "num_rows": num_rows,
        "width": width,
        "x_stride": x.stride(0),
        "residual_stride": 0 if residual is None else residual.stride(0),
        "eps": eps,
        "EARLY": starts_early(x.device),
        "BLOCK": power_of_2(width),
    }
    grid = (cdiv(num_rows, config["ROWS"]),)
    launches = (Launch(layer_norm_kernel, grid, arguments, config),) if num_rows else ()
    return Plan(launches, out if residual is None else (out, total))


def make_inputs(
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    rows: int,
    width: int,
    fused: bool = True,
    biased: bool = True,
    strided: bool = False,
) -> Inputs:
    """Return x [rows, width] of spread 5 around 2, as a strided slice if asked for."""
    generator = torch.Generator(device).manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    x = noise(rows, width + 8)[:, 3 : width + 3] if strided else noise(rows, width)
    inputs: Inputs = {
        "x": x if strided else x * 5 + 2,
        "weight": noise(width),
        "bias": noise(width) if biased else None,
        "eps": 1e-5,
    }
    return inputs | ({"residual": noise(rows, width)} if fused else {})


def num_bytes(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, **_: Any
) -> int:
    """Return bytes read and written once: two tensors of x's size, or four with a residual."""
    parameters = weight.nbytes + (0 if bias is None else bias.nbytes)
    return (2 if residual is None else 4) * x.numel() * x.element_size() + parameters


SPEC = KernelSpec(
    name="layer_norm",
    summary="layer norm of rows with a fused residual add",
    reference=reference,
    plan=plan,
    make_inputs=make_inputs,
    cases={
        "one element": Case({"rows": 1, "width": 1}),
        "odd width": Case({"rows": 7, "width": 130}),
        "no residual": Case({"rows": 3, "width": 64, "fused": False}),
        "no bias": Case({"rows": 5, "width": 48, "biased": False}),
        "strided rows": Case({"rows": 5, "width": 33, "strided": True, "fused": False}),
        "no rows": Case({"rows": 0, "width": 64}),
        "small decode": Case({"rows": 16, "width": 512}),
        "gpt-neox-1b decode 64": Case({"rows": 64, "width": 2048}, small=False),
        "gpt-neox-7b decode 1": Case({"rows": 1, "width": 4096}, small=False, quick=True),
        "gpt-neox-7b decode 256": Case({"rows": 256, "width": 4096}, small=False),
        "gpt-neox-7b prefill 8k": Case({"rows": 8192, "width": 4096}, small=False, quick=True),
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
    flops=lambda x, residual=None, **_: (7 if residual is None else 8) * x.numel(),
    num_bytes=num_bytes,
    tolerance={
        torch.float32: (1e-5, 1e-5),
        torch.float16: (2e-3, 2e-3),
        torch.bfloat16: (1.6e-2, 1.6e-2),
    },
    limits=LIMITS,
)


def layer_norm(*args: Any, **kwargs: Any) -> Any:
    """Return the norm of x [T, N], or (norm, x + residual); arguments as of `plan`."""
    return plan(*args, **kwargs).run()
