"""Async engines over a tiny random model; each is checked when its test ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import write_checkpoint

from workbench.async_engine import AsyncEngine
from workbench.cache import KVCache
from workbench.config import SchedulerConfig
from workbench.engine import Engine
from workbench.models import DecoderLM, load_model
from workbench.run import Runner
from workbench.scheduler import Scheduler

MakeEngine = Callable[..., Engine]
Serve = Callable[..., AsyncEngine]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> DecoderLM:
    """A tiny random Llama with its tokenizer. Tests must not change it."""
    folder: Path = write_checkpoint(tmp_path_factory.mktemp("llama"), "llama")
    return load_model(folder, device="cpu", dtype="float32")


@pytest.fixture
def make_engine(model: DecoderLM) -> MakeEngine:
    """Build an engine by hand. Keywords: the cache's size, and fields of `SchedulerConfig`."""

    def make(*, num_blocks: int = 96, block_size: int = 16, **scheduling: Any) -> Engine:
        cache = KVCache.for_model(model, num_blocks, block_size)
        settings = {"max_batch_tokens": 512, "max_sequences": 32, **scheduling}
        scheduler = Scheduler(cache, SchedulerConfig(**settings))
        return Engine(model, cache, scheduler, Runner(model, cache))

    return make


@pytest.fixture
def serve(make_engine: MakeEngine) -> Iterator[Serve]:
    """Return a function that serves an engine.

    Its keywords are `make_engine`'s, `max_pending`, and `pace`: seconds that each step takes at
    least. A test that acts on a running request gives one, so that a reader whom the machine keeps
    waiting for seconds still finds it running; `hurry` ends it. At the end, each that is still open
    must hold no block; then it is closed, and its thread ends.
    """
    served: list[AsyncEngine] = []
    before = set(threading.enumerate())

    def start(
        engine: Engine | None = None,
        *,
        max_pending: int | None = 1024,
        pace: float = 0,
        **settings: Any,
    ) -> AsyncEngine:
        engine = engine or make_engine(**settings)
        if pace:
            real, engine.pace = engine.step, pace
            engine.step = lambda: (time.sleep(engine.pace), real())[1]
        served.append(AsyncEngine(engine, max_pending=max_pending))
        return served[-1]

    yield start
    try:
        for aengine in served:
            if not aengine.closed:
                aengine.resume().result(60)
                aengine.call(require_clean).result(60)
    finally:
        for aengine in served:
            aengine.close()
            assert aengine.closed
    left = set(threading.enumerate()) - before
    assert [thread for thread in left if thread.name == "workbench-engine"] == []


@pytest.fixture
def hurry() -> Callable[[AsyncEngine], None]:
    """Return a function that ends an engine's pace: its steps take as long as they take."""
    return lambda aengine: setattr(aengine._loop.engine, "pace", 0)


def require_clean(engine: Engine) -> None:
    """Fail unless the engine knows of no request and every block is free."""
    engine.cache.check()
    assert engine.requests == {}
    assert engine.cache.blocks.num_used == 0
    assert not engine.cache.blocks.pending_copies
