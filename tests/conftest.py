"""What every test shares: the repository's root, fixed seeds, skips that say what lifts them."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from interpreter import interpret_without_gpu

interpret_without_gpu()  # before any test imports what imports a kernel
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A shell makes its background jobs ignore SIGINT; tests that send one would wait for ever."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fixed_torch_seed() -> None:
    """pytest-randomly seeds `random` and numpy; torch is only seeded where a test has loaded it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs more GPUs than there are; among several workers, what is slow starts first.

    At the end of a run a worker then waits for a short test of another, not for a notebook.
    """
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    needs = {"gpu": 1, "multi_gpu": 2}
    wanted = [(i, n) for i in items for mark, n in needs.items() if i.get_closest_marker(mark)]
    if not wanted:
        return
    import torch  # seconds; only where a collected test needs to know

    have = torch.cuda.device_count()
    for item, count in wanted:
        if have < count:
            reason = f"needs {count} CUDA GPU(s) that torch can use, found {have}"
            item.add_marker(pytest.mark.skip(reason=reason))
