"""Triton kernels run in the interpreter where there is no GPU."""

from __future__ import annotations

from interpreter import interpret_without_gpu

interpret_without_gpu()
