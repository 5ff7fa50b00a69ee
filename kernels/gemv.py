"""x W^T for few rows of x (m <= 16): a decode step's linear layer, at the speed weights are read.

Memory-bound: every weight is read once, for all rows. A program takes BLOCK_N outputs and walks the
inputs in steps of BLOCK_K with STAGES steps in flight. DOT multiplies on the tensor cores, with x
padded to 16 rows; without it (one row only) threads multiply and the sum is taken at the end. Bias
and residual are added where the result is still in registers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels.early import await_previous, prefetch, starts_early
from workbench.kernels.launch import INTERPRETED, Config, Launch, Plan, cdiv, power_of_2
from workbench.kernels.spec import Case, Inputs, KernelSpec, check_limits

LIMITS = {"rows": (1, 16)}


@triton.jit
def gemv_kernel(
    x, weight, bias, residual, out, num_rows, num_outputs, num_inputs, x_stride, weight_stride,
    residual_stride, EARLY: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Fill BLOCK_N columns of out [num_rows, num_outputs]."""
    ROWS: tl.constexpr = 16 if DOT else 1
    outputs = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows, inputs = tl.arange(0, ROWS), tl.arange(0, BLOCK_K)
    known = outputs < num_outputs
    if EARLY:  # weights are there already: the first 2 KiB of each row
        line = tl.arange(0, 16) * 64
        near = known[:, None] & (line < num_inputs)[None, :]
        prefetch(tl.where(near, outputs[:, None] * weight_stride + line[None, :], 0) + weight)
    await_previous(EARLY)
    acc = tl.zeros([BLOCK_N, ROWS if DOT else BLOCK_K], tl.float32)
    for start in tl.range(0, num_inputs, BLOCK_K, num_stages=STAGES):
        k = start + inputs
        places = weight + outputs[:, None] * weight_stride + k[None, :]
        sources = x + rows[None, :] * x_stride + k[:, None]
        if EVEN:
            w = tl.load(places, eviction_policy="evict_first")
            part = tl.load(sources, mask=(rows < num_rows)[None, :], other=0.0)
        else:
            w = tl.load(places, mask=known[:, None] & (k < num_inputs)[None, :], other=0.0)
            inside = (rows < num_rows)[None, :] & (k < num_inputs)[:, None]
            part = tl.load(sources, mask=inside, other=0.0)
        if UPCAST or not DOT:
            w, part = w.to(tl.float32), part.to(tl.float32)
        if DOT:
            acc = tl.dot(w, part, acc, input_precision="ieee")
        else:
            acc += w * tl.trans(part)
    if not DOT:
        acc = tl.sum(acc, axis=1)[:, None]
    inside = known[:, None] & (rows < num_rows)[None, :]
    if bias is not None:
        acc += tl.load(bias + outputs, mask=known, other=0.0).to(tl.float32)[:, None]
    if residual is not None:  # rounded as the product alone would be
        places = residual + rows[None, :] * residual_stride + outputs[:, None]
        added = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        acc = acc.to(out.dtype.element_ty).to(tl.float32) + added
    places = out + rows[None, :] * num_outputs + outputs[:, None]
    tl.store(places, acc.to(out.dtype.element_ty), mask=inside)


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Return x W^T + bias, summed in float32 and rounded, plus the residual."""
    wide = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    out = wide.to(x.dtype)
    return out if residual is None else out + residual


def baseline(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Return torch's `F.linear`, which is cuBLAS on a GPU."""
    out = F.linear(x, weight, bias)
    return out if residual is None else out + residual


def default(x: Tensor, weight: Tensor, **_: Any) -> Config:
    """Return threads for one row of halves, tensor cores for more."""
    if x.shape[0] == 1:
        return {"BLOCK_N": 8, "BLOCK_K": 512, "DOT": 0, "STAGES": 4, "num_warps": 4}
    step = 128 if weight.element_size() == 2 else 32
    return {"BLOCK_N": 32, "BLOCK_K": step, "DOT": 1, "STAGES": 4, "num_warps": 2}


def plan(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    config: Config | None = None,
) -> Plan:
    """Plan x W^T [m, N] for x [m, K] and weight [N, K], plus bias [N] and residual [m, N]."""
    rows, num_inputs = x.shape
    num_outputs = weight.shape[0]
    check_limits("gemv", LIMITS, rows=rows)
    assert x.stride(1) == weight.stride(1) == 1, "the inputs of a row are adjacent"
    config = config or default(x, weight)
    assert config["DOT"] or rows == 1, "only the tensor cores take more than one row"
    out = torch.empty((rows, num_outputs), dtype=x.dtype, device=x.device)
    arguments = {
        "x": x,
        "weight": weight,
        "bias": bias,
        "residual": residual,
        "out": out,
        "num_rows": rows,
        "num_outputs": num_outputs,
        "num_inputs": num_inputs,
        "x_stride": x.stride(0),
        "weight_stride": weight.stride(0),
        "residual_stride": 0 if residual is None else residual.stride(0),
        "EARLY": starts_early(x.device),
        "EVEN": num_inputs % config["BLOCK_K"] == 0 and num_outputs % config["BLOCK_N"] == 0,
        "UPCAST": INTERPRETED,
    }
    grid = (cdiv(num_outputs, config["BLOCK_N"]),)
    return Plan((Launch(gemv_kernel, grid, arguments, config),), out)


def make_inputs(
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    rows: int,
    outputs: int,
    inputs: int,
    bias: bool = False,
    residual: bool = False,
    strided: bool = False,
) -> Inputs:
    """Return x of spread 1 and weights such that outputs have spread 1 too."""
    generator = torch.Generator(device).manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    width = inputs + (24 if strided else 0)
    made: Inputs = {"x": noise(rows, width)[:, :inputs]}
    made["weight"] = noise(outputs, width).div_(inputs**0.5)[:, :inputs]
    if bias:
        made["bias"] = noise(outputs)
    if residual:
        made["residual"] = noise(rows, outputs)
    return made


def num_bytes(x: Tensor, weight: Tensor, **inputs: Any) -> int:
    """Return bytes: weights, x, and the output, with the residual if there is one, once each."""
    outputs = x.shape[0] * weight.shape[0] * x.element_size()
    return weight.nbytes + x.nbytes + outputs * (2 if inputs.get("residual") is not None else 1)


def keep(config: Config, inputs: Inputs) -> bool:
    """Whether a configuration fits the rows, the registers and the shared memory."""
    weight, block = inputs["weight"], config["BLOCK_N"] * config["BLOCK_K"]
    if block * weight.element_size() * config["STAGES"] > 200 << 10:
        return False
    if not config["DOT"]:
        per_thread = block // (32 * config["num_warps"])
        return bool(len(inputs["x"]) == 1 and 16 <= per_thread <= 64)
    return config["BLOCK_N"] >= 16 and config["BLOCK_K"] <= 256 and block >= 2048


_GATE_UP = {"outputs": 28672, "inputs": 4096}

SPEC = KernelSpec(
    name="gemv",
    summary="x W^T for at most 16 rows, with bias and residual",
    reference=reference,
    plan=plan,
    make_inputs=make_inputs,
    cases={
        "one of one": Case({"rows": 1, "outputs": 1, "inputs": 1}),
        "one row, odd": Case({"rows": 1, "outputs": 13, "inputs": 70}),
        "five rows, odd": Case({"rows": 5, "outputs": 37, "inputs": 130}),
        "sixteen rows": Case({"rows": 16, "outputs": 64, "inputs": 256}),
        "bias, residual": Case(
            {"rows": 3, "outputs": 40, "inputs": 64, "bias": True, "residual": True}
        ),
        "one row, bias, residual": Case(
            {"rows": 1, "outputs": 40, "inputs": 64, "bias": True, "residual": True}
        ),
        "strided": Case({"rows": 2, "outputs": 40, "inputs": 64, "strided": True}),
        "llama-8b small": Case({"rows": 1, "outputs": 64, "inputs": 4096}),
        "llama-8b small 16": Case({"rows": 16, "outputs": 64, "inputs": 4096}),
        "tinypy gate_up": Case({"rows": 1, "outputs": 2560, "inputs": 512}, small=False),
        "llama-1b gate_up": Case({"rows": 1, "outputs": 16384, "inputs": 2048}, small=False),
        "llama-8b gate_up 1": Case({"rows": 1, **_GATE_UP}, small=False, quick=True),
        "llama-8b gate_up 4": Case({"rows": 4, **_GATE_UP}, small=False),
        "llama-8b gate_up 16": Case({"rows": 16, **_GATE_UP}, small=False, quick=True),
        "llama-8b qkv 1": Case(
            {"rows": 1, "outputs": 6144, "inputs": 4096}, small=False, quick=True
        ),
        "llama-8b o 1": Case({"rows": 1, "outputs": 4096, "inputs": 4096}, small=False, quick=True),
        "llama-8b down 1": Case(
            {"rows": 1, "outputs": 4096, "inputs": 14336, "residual": True}, small=False, quick=True
        ),
        "llama-8b head 1": Case(
            {"rows": 1, "outputs": 128256, "inputs": 4096}, small=False, quick=True
        ),
    },
    space={
        "BLOCK_N": (4, 8, 16, 32, 64, 128),
        "BLOCK_K": (64, 128, 256, 512, 1024),
        "DOT": (0, 1),
        "STAGES": (2, 3, 4, 6),
        "num_warps": (2, 4, 8),
    },
    keep=keep,
    default=default,
    bucket=lambda x, weight, **_: (
        f"{weight.shape[0]}x{weight.shape[1]} rows {power_of_2(x.shape[0])}"
    ),
    flops=lambda x, weight, **_: 2 * x.shape[0] * weight.numel(),
    num_bytes=num_bytes,
    tolerance={
        torch.float32: (1e-4, 1e-5),
        torch.float16: (2e-3, 2e-3),
        torch.bfloat16: (1.6e-2, 1.6e-2),
    },
    limits=LIMITS,
    baseline=baseline,
)


def gemv(*args: Any, **kwargs: Any) -> Tensor:
    """Return x W^T; arguments as of `plan`."""
    out: Tensor = plan(*args, **kwargs).run()
    return out
