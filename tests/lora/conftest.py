"""Tiny checkpoints, adapters that PEFT wrote for them, and engines that go through these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_adapters import CONFIGS, write_adapter
from tiny import write_checkpoint

from workbench.cache import KVCache
from workbench.config import SchedulerConfig
from workbench.engine import Engine
from workbench.lora import LoRAManager
from workbench.models import DecoderLM, load_model
from workbench.run import Runner
from workbench.scheduler import Scheduler


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the folder of a family's tiny checkpoint, written once."""
    folders: dict[str, Path] = {}

    def folder_of(family: str = "llama") -> Path:
        if family not in folders:
            folders[family] = write_checkpoint(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return folder_of


@pytest.fixture(scope="session")
def model_of(checkpoint: Callable[..., Path]) -> Callable[..., DecoderLM]:
    """Return a family's model in float32, loaded once. Tests must leave it as it is."""
    models: dict[tuple[str, str], DecoderLM] = {}

    def load(family: str = "llama", device: str = "cpu") -> DecoderLM:
        key = family, device
        if key not in models:
            models[key] = load_model(checkpoint(family), device=device, dtype="float32")
        return models[key]

    return load


@pytest.fixture
def model(model_of: Callable[..., DecoderLM]) -> DecoderLM:
    """The tiny Llama."""
    return model_of()


@pytest.fixture(scope="session")
def adapter_of(
    checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return the folder of an adapter in one of `CONFIGS`, written once by PEFT."""
    folders: dict[tuple[str, str, int], Path] = {}

    def folder_of(name: str = "all linear", family: str = "llama", seed: int = 0) -> Path:
        key = name, family, seed
        if key not in folders:
            folder = tmp_path_factory.mktemp("adapter")
            folders[key] = write_adapter(folder, checkpoint(family), seed, **CONFIGS[name])
        return folders[key]

    return folder_of


@pytest.fixture
def make_engine(model_of: Callable[..., DecoderLM]) -> Iterator[Callable[..., Engine]]:
    """Build an engine by hand; at the end each has no work, all blocks free and books in order."""
    engines: list[Engine] = []

    def make(
        model: DecoderLM | str = "llama",
        *,
        device: str = "cpu",
        backend: str = "sdpa",
        num_blocks: int = 96,
        block_size: int = 16,
        tape: Any = "auto",
        cuda_graphs: Any = "auto",
        num_rows: int | None = None,
        host_bytes: int | None = None,
        host_cache_bytes: int = 0,
        **scheduling: Any,
    ) -> Engine:
        model = model_of(model, device) if isinstance(model, str) else model
        cache = KVCache.for_model(model, num_blocks, block_size, host_bytes=host_cache_bytes)
        for tensor in cache.tensors:
            tensor.fill_(torch.nan)
        settings = {"max_batch_tokens": 512, "max_sequences": 32, **scheduling}
        scheduler = Scheduler(cache, SchedulerConfig(**settings))
        runner = Runner(model, cache, backend, cuda_graphs, tape)
        loras = LoRAManager(model, num_rows=num_rows, host_bytes=host_bytes)
        engines.append(Engine(model, cache, scheduler, runner, loras=loras))
        return engines[-1]

    yield make
    for engine in engines:
        if engine.closed:
            continue
        engine.cache.check()
        assert not engine.has_work, "the test left requests in an engine"
        assert engine.cache.blocks.num_used == 0, "blocks leaked"
        pool = engine.loras.slots.pool
        entries = engine.loras.store.entries.values()
        taken = [row for e in entries if e.resident is not None for row in e.resident.rows]
        assert len(set(taken)) == len(taken) == pool.num_rows - pool.num_free, "rank rows leaked"
        engine.close()
