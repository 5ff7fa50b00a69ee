"""x W^T for any number of rows, with sums whose order no other row and no number of rows changes.

For `batch_invariant` engines: a library chooses tiles, and splits of the sum, by the shape of the
whole batch, and with them the last bits. Here a result is one accumulator that takes the inputs in
order, sixteen at a time on tensor cores. Few rows and many take tiles of their own: these differ in
which results lie together, not in how one is summed; `make test-gpu` holds them to the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels.launch import INTERPRETED, Config, Launch, Plan, cdiv
from workbench.kernels.spec import Case, Inputs, KernelSpec

FEW_ROWS = 64


@triton.jit(do_not_specialize=["num_rows"])
def matmul_kernel(
    x, weight, bias, out, num_rows, num_outputs, num_inputs, x_stride, weight_stride,
    UPCAST: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Fill BLOCK_M x BLOCK_N of out [num_rows, num_outputs]."""
    # GROUP tiles of rows share their weights in L2 before the next columns are read.
    across, down = tl.cdiv(num_outputs, BLOCK_N), tl.cdiv(num_rows, BLOCK_M)
    group, within = tl.program_id(0) // (GROUP * across), tl.program_id(0) % (GROUP * across)
    height = tl.minimum(down - group * GROUP, GROUP)
    rows = (group * GROUP + within % height).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    outputs = (within // height).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK_K)
    own, known = rows < num_rows, outputs < num_outputs
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, num_inputs, BLOCK_K):
        k = start + inputs
        inside = k < num_inputs
        left = own[:, None] if EVEN else own[:, None] & inside[None, :]
        right = known[None, :] if EVEN else known[None, :] & inside[:, None]
        part = tl.load(x + rows[:, None] * x_stride + k[None, :], mask=left, other=0.0)
        w = tl.load(weight + outputs[None, :] * weight_stride + k[:, None], mask=right, other=0.0)
        if UPCAST:
            part, w = part.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(part, w, acc, input_precision="ieee")
    if bias is not None:
        acc += tl.load(bias + outputs, mask=known, other=0.0).to(tl.float32)[None, :]
    places = out + rows[:, None] * num_outputs + outputs[None, :]
    tl.store(places, acc.to(out.dtype.element_ty), mask=own[:, None] & known[None, :])


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + bias, summed in float32 and rounded once."""
    wide = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return wide.to(x.dtype)


def baseline(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return torch's `F.linear`, which is cuBLAS on a GPU."""
    return F.linear(x, weight, bias)


def default(x: Tensor, weight: Tensor, **_: Any) -> Config:
    """Return narrow tiles for few rows, which read weights fast, and square ones for many."""
    if x.element_size() == 4 or INTERPRETED:  # no tensor cores: one tile for all
        tile = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32}
        return {**tile, "GROUP": 8, "num_warps": 4, "num_stages": 3}
    if len(x) <= FEW_ROWS:
        tile = {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 128}
        return {**tile, "GROUP": 8, "num_warps": 4, "num_stages": 4}
    tile = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}
    return {**tile, "GROUP": 8, "num_warps": 8, "num_stages": 3}


def plan(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, config: Config | None = None
) -> Plan:
    """Plan x W^T + bias [m, N] for x [m, K], weight [N, K], bias [N]; rows may be strided."""
    (rows, num_inputs), num_outputs = x.shape, weight.shape[0]
    assert x.stride(1) == weight.stride(1) == 1, "the inputs of a row are adjacent"
    config = config or default(x, weight)
    out = torch.empty((rows, num_outputs), dtype=x.dtype, device=x.device)
    arguments = {
        "x": x,
        "weight": weight,
        "bias": bias,
        "out": out,
        "num_rows": rows,
        "num_outputs": num_outputs,
        "num_inputs": num_inputs,
        "x_stride": x.stride(0),
        "weight_stride": weight.stride(0),
        "UPCAST": INTERPRETED,
        "EVEN": num_inputs % config["BLOCK_K"] == 0,
    }
    grid = (cdiv(rows, config["BLOCK_M"]) * cdiv(num_outputs, config["BLOCK_N"]),)
    return Plan((Launch(matmul_kernel, grid, arguments, config),) if rows else (), out)


def make_inputs(
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    rows: int,
    outputs: int,
    inputs: int,
    bias: bool = False,
) -> Inputs:
    """Return x and weight of spread 1 and inputs^-1/2, so that results are of spread 1."""
    generator = torch.Generator(device).manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    made = {
        "x": noise(rows, inputs).to(dtype),
        "weight": (noise(outputs, inputs) * inputs**-0.5).to(dtype),
    }
    return made | ({"bias": noise(outputs).to(dtype)} if bias else {})


def num_bytes(x: Tensor, weight: Tensor, bias: Tensor | None = None, **_: Any) -> int:
    """Return bytes: x, weight and bias read, the result written."""
    out = len(x) * len(weight) * x.element_size()
    return x.nbytes + weight.nbytes + out + (0 if bias is None else bias.nbytes)


_GATE_UP = {"outputs": 28672, "inputs": 4096}

SPEC = KernelSpec(
    name="matmul",
    summary="x W^T, summed in an order that no batch changes",
    reference=reference,
    plan=plan,
    make_inputs=make_inputs,
    cases={
        "one of each": Case({"rows": 1, "outputs": 1, "inputs": 1}),
        "odd sizes": Case({"rows": 5, "outputs": 37, "inputs": 70, "bias": True}),
        "more than a tile": Case({"rows": 70, "outputs": 40, "inputs": 64}),
        "no rows": Case({"rows": 0, "outputs": 16, "inputs": 32}),
        "llama-8b, some outputs": Case({"rows": 2, "outputs": 64, "inputs": 4096}),
        "llama-8b gate_up 1": Case({"rows": 1, **_GATE_UP}, small=False, quick=True),
        "llama-8b gate_up 64": Case({"rows": 64, **_GATE_UP}, small=False),
        "llama-8b gate_up 256": Case({"rows": 256, **_GATE_UP}, small=False, quick=True),
        "llama-8b gate_up 8k": Case({"rows": 8192, **_GATE_UP}, small=False),
        "llama-8b down 1": Case({"rows": 1, "outputs": 4096, "inputs": 14336}, small=False),
    },
    space={
        "BLOCK_M": (64, 128),
        "BLOCK_N": (32, 64, 128, 256),
        "BLOCK_K": (32, 64, 128),
        "GROUP": (8,),
        "num_warps": (4, 8),
        "num_stages": (3, 4),
    },
    keep=lambda config, inputs: (
        (config["BLOCK_M"] + config["BLOCK_N"]) * config["BLOCK_K"] * config["num_stages"]
        * inputs["x"].element_size() <= 200_000
        and 32 <= config["BLOCK_M"] * config["BLOCK_N"] // (32 * config["num_warps"]) <= 128
    ),
    default=default,
    bucket=lambda x, weight, **_: (
        f"{weight.shape[0]}x{weight.shape[1]} {'few' if len(x) <= FEW_ROWS else 'many'} rows"
    ),
    flops=lambda x, weight, **_: 2 * len(x) * weight.numel(),
    num_bytes=num_bytes,
    tolerance={
        torch.float32: (1e-5, 2e-5),
        torch.float16: (2e-3, 2e-3),
        torch.bfloat16: (1.6e-2, 1.6e-2),
    },
    limits={},
    baseline=baseline,
)  # fmt: skip


def matmul(*args: Any, **kwargs: Any) -> Tensor:
    """Return x W^T + bias [m, N]; arguments as of `plan`."""
    out: Tensor = plan(*args, **kwargs).run()
    return out
