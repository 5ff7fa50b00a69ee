"""Holding a kernel to its reference, within its spec's tolerance."""

from __future__ import annotations

from typing import Any

import torch

from workbench.kernels.accuracy import accuracy, tensors, tolerance
from workbench.kernels.quantised_kv import FP8
from workbench.kernels.spec import KernelSpec


def check(spec: KernelSpec, inputs: dict[str, Any], dtype: torch.dtype, **settings: Any) -> None:
    """Assert that a kernel's outputs are its reference's, and that `accuracy` says the same."""
    expected = tensors(spec.reference(**inputs))
    actual = tensors(spec(**inputs, **settings))
    assert [x.dtype for x in actual] == [x.dtype for x in expected]
    pairs = [
        (got, wanted)
        for got, wanted in zip(actual, expected, strict=True)
        # triton's interpreter rounds fp8 wrongly: judged on a GPU
        if got.dtype != FP8 or torch.cuda.is_available()
    ]
    for got, wanted in pairs:
        rtol, atol = tolerance(spec, dtype, got)
        torch.testing.assert_close(
            got.float(), wanted.float(), rtol=rtol, atol=atol, equal_nan=True
        )
    assert accuracy(spec, dtype, *(tuple(side) for side in zip(*pairs, strict=True))).ok
