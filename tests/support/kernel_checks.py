"""Holding a kernel to its reference, within its spec's tolerance."""

from __future__ import annotations

from typing import Any

import torch

from workbench.kernels.paged import FP8
from workbench.kernels.spec import KernelSpec

# A kernel that quantises may round a tie, or a sum's last bit, the other way.
ONE_STEP = {torch.int8: (0.0, 1.0), FP8: (0.13, 2**-9)}


def tensors(outputs: Any) -> tuple[torch.Tensor, ...]:
    """Return outputs as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def check(spec: KernelSpec, inputs: dict[str, Any], dtype: torch.dtype, **settings: Any) -> None:
    """Hold a kernel's outputs to its reference's, within the spec's tolerance."""
    expected = tensors(spec.reference(**inputs))
    actual = tensors(spec(**inputs, **settings))
    rtol, atol = spec.tolerance[dtype]
    assert len(actual) == len(expected)
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == wanted.dtype
        if got.dtype == FP8 and not torch.cuda.is_available():
            continue  # triton's interpreter rounds fp8 wrongly: judged on a GPU
        step_rtol, step_atol = ONE_STEP.get(got.dtype, (rtol, atol))
        torch.testing.assert_close(
            got.float(), wanted.float(), rtol=step_rtol, atol=step_atol, equal_nan=True
        )
