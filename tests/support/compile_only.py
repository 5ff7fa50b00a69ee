"""A process that compiles kernels for GPUs that are not here, for tests that ask it many times.

The tests' own process interprets kernels, so it cannot; and a process for each question would spend
most of its time on importing torch and triton.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

import pytest
import torch

from workbench.kernels.cross_compile import compile_for, compile_launch, launches
from workbench.kernels.registry import SPECS


@contextmanager
def compiler_process() -> Iterator[ProcessPoolExecutor]:
    """A pool of one process whose kernels are compiled."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as environment:
            environment.delenv("TRITON_INTERPRET", raising=False)
            pool.submit(int).result()  # starts it
        yield pool


def compile_all(
    name: str, case: str, dtype: torch.dtype, targets: list[str], sample: int = 0
) -> list[dict[str, Any]]:
    """Compile a case's default and `sample` others; return rows of target and shared bytes."""
    chosen = launches(SPECS[name], case, dtype, targets, sample)
    return [
        {"target": target, "shared": compile_for(launch, target).metadata.shared}
        for _, launch, target in chosen
    ]


def default_resources(name: str, case: str, target: str) -> list[dict[str, Any]]:
    """Compile a case's default and return what each of its launches takes, by its machine code."""
    chosen = launches(SPECS[name], case, torch.bfloat16, [target])
    return [asdict(compile_launch(launch, target)) for _, launch, target in chosen]
