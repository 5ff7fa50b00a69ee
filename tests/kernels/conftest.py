"""Kernels run natively on a GPU, and in Triton's interpreter elsewhere."""

from __future__ import annotations

import pytest
import torch
from interpreter import kernel_device


@pytest.fixture(params=[kernel_device()])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels run."""
    return torch.device(request.param)
