"""What the tests of views share: node, and a small view of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import workbench as wb
from workbench.cli.machine.tools import HOW_TO_GET_NODE

Node = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def node() -> Node:
    """Return a function that runs node with arguments and returns what it printed."""
    found = shutil.which("node")
    if found is None:
        pytest.skip(f"no node on this machine: {HOW_TO_GET_NODE}")

    def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [found, *arguments], input=stdin, capture_output=True, text=True, timeout=120
        )

    return run


@pytest.fixture(scope="session")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Return a tiny model of a family, loaded once."""

    @cache
    def load(family: str) -> Any:
        folder: Path = tiny.write_checkpoint(tmp_path_factory.mktemp(family), family)
        return wb.load_model(folder, device="cpu", dtype="float32")

    return load


@pytest.fixture
def make_engine(_model: Callable[[str], Any]) -> Callable[..., wb.Engine]:
    """Build a tiny engine. Keywords: its cache's sizes, and the fields of `SchedulerConfig`."""

    def make(
        family: str = "llama",
        *,
        num_blocks: int = 32,
        block_size: int = 4,
        host_blocks: int = 0,
        **scheduling: Any,
    ) -> wb.Engine:
        model = _model(family)
        per_block = wb.KVCache.bytes_per_block(model.config, block_size, torch.float32)
        sizes = num_blocks, block_size
        kv = wb.KVCache.for_model(model, *sizes, host_bytes=host_blocks * per_block)
        settings = {"max_batch_tokens": 64, "max_sequences": 8, **scheduling}
        scheduler = wb.Scheduler(kv, wb.SchedulerConfig(**settings))
        return wb.Engine(model, kv, scheduler, wb.Runner(model, kv, "sdpa"))

    return make
