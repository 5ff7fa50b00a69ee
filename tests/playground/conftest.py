"""Workers that outlive a test: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from workbench.playground.client import Worker


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """Tries kernels: natively on a GPU, else in the interpreter."""
    with Worker() as made:
        yield made


@pytest.fixture(scope="session")
def compiler() -> Iterator[Worker]:
    """Compiles kernels: never interprets."""
    with Worker(interpret=False) as made:
        yield made
