"""Where Triton kernels run in the tests: natively on a CUDA GPU, else in Triton's interpreter.

The choice is made by an environment variable that Triton reads when a kernel is defined, so the
conftest of all tests makes it before any of them imports the package.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch


def interpret_without_gpu() -> None:
    """Switch the interpreter on if there is no GPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def kernel_device() -> Any:
    """Return the one device that kernels run on here, as a pytest parameter."""
    if torch.cuda.is_available():
        return pytest.param("cuda", marks=pytest.mark.gpu)
    return "cpu"
