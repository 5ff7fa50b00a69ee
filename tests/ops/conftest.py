"""Backends and devices for the tests of single operations."""

from __future__ import annotations

import pytest

from workbench.batch import Backend
from workbench.ops import get_backend


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the test runs."""
    return request.param


@pytest.fixture(params=["reference", "sdpa"])
def backend(request: pytest.FixtureRequest, device: str) -> Backend:
    """Each backend, on each device."""
    return get_backend(request.param, device)
