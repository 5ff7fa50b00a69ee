"""Backends and devices for the tests of single operations."""

from __future__ import annotations

import pytest
import torch

from workbench.batch import Backend
from workbench.ops import get_backend


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the test runs."""
    return request.param


INVARIANT = ("reference, invariant", "triton, invariant")


@pytest.fixture(params=["reference", "sdpa", "native", "triton", "triton+sdpa", *INVARIANT])
def backend(request: pytest.FixtureRequest, device: str) -> Backend:
    """Each backend, on each device that it runs on."""
    if request.param.startswith("triton") and device == "cpu" and torch.cuda.is_available():
        pytest.skip("kernels run on the GPU here: lifted by TRITON_INTERPRET=1 on a CPU")
    if request.param == "native" and device != "cpu":
        pytest.skip("the native backend runs on a CPU")
    name, _, invariant = request.param.partition(", ")
    return get_backend(name, device, batch_invariant=bool(invariant))
