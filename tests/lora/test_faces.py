"""Adapters through `LLM`, `AsyncEngine` and `build`, and the plan of their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drive import greedy
from random_adapters import random_adapter

from workbench.async_engine import AsyncEngine
from workbench.build import build
from workbench.config import EngineConfig
from workbench.errors import ConfigError, RequestError
from workbench.events import RequestAdded
from workbench.llm import LLM
from workbench.lora import LoRAManager
from workbench.memory_plan import Memory, plan_memory
from workbench.models import DecoderLM

PROMPTS = ["def f(x):", "import os", "class Stack:"]


@pytest.fixture
def llm(checkpoint: Callable[..., Path], adapter_of: Callable[..., Path]) -> Iterator[LLM]:
    """The tiny model with room for two adapters of rank 4, and one of them loaded."""
    with LLM(checkpoint(), dtype="float32", num_blocks=64, lora_rows=8, overlap=True) as llm:
        llm.loras.load("sql", adapter_of())
        yield llm


def texts(llm: LLM, lora: str | list[str | None] | None) -> list[str]:
    outputs = llm.generate(PROMPTS, greedy(8), lora=lora, progress=False)
    return [output.outputs[0].text for output in outputs]


def test_llm_takes_one_adapter_for_all_or_one_each(llm: LLM) -> None:
    base, adapted = texts(llm, None), texts(llm, "sql")
    assert all(a != b for a, b in zip(base, adapted, strict=True))
    assert texts(llm, ["sql", None, "sql:0"]) == [adapted[0], *base[1:]]
    with pytest.raises(RequestError, match="lora='2 of them': for 3 prompts"):
        texts(llm, ["sql", None])
    with pytest.raises(RequestError, match="lora='x': is not loaded"):
        texts(llm, ["sql", None, "x"])


def test_an_async_engine_takes_them_too(llm: LLM) -> None:
    expected = texts(llm, ["sql", "sql:0.5", None])
    engine = AsyncEngine(llm.engine)
    uses = ("sql", "sql:0.5", None)
    replies = [engine.generate(p, greedy(8), lora=u) for p, u in zip(PROMPTS, uses, strict=True)]
    assert [reply.result(60).outputs[0].text for reply in replies] == expected
    assert engine.call(lambda e: e.loras.info("sql").num_requests).result(60) == 4
    engine.close()


def test_traces_say_what_a_request_goes_through(llm: LLM) -> None:
    seen: list[str] = []
    bus = llm.engine.bus
    bus.subscribe(lambda e: seen.append(e.lora) if isinstance(e, RequestAdded) else None)
    texts(llm, ["sql", "sql:0.25", None])
    assert seen == ["sql:1", "sql:0.25", ""]


def test_rank_rows_are_planned_beside_the_cache(model: DecoderLM) -> None:
    few, many = (EngineConfig(lora_rows=n, num_blocks=8) for n in (10, 1000))
    machine = Memory(1 << 34, 1 << 33)
    plans = [plan_memory(model, config, machine) for config in (few, many)]
    taken = [plan.shares["LoRA adapters"] for plan in plans]
    assert taken[1] == 100 * taken[0]
    assert plans[0].num_left - plans[1].num_left == taken[1] - taken[0]
    assert "LoRA adapters" not in plan_memory(model, EngineConfig(num_blocks=8)).shares
    with pytest.raises(ConfigError, match="lora_rows"):
        plan_memory(model, EngineConfig(lora_rows=0))


def test_what_is_planned_is_what_is_taken(model: DecoderLM) -> None:
    config = EngineConfig(lora_rows=12, num_blocks=8, device="cpu")
    with build(config, model=model) as engine:
        engine.loras.load("a", random_adapter(model, 0, 12))
        engine.generate([[1, 2, 3]], greedy(2), lora="a")
        planned = plan_memory(model, config).shares["LoRA adapters"]
        assert engine.loras.slots.pool.num_bytes == planned


def test_a_manager_of_another_model_is_refused(
    model_of: Callable[..., DecoderLM], make_engine: Callable[..., object]
) -> None:
    from workbench.cache import KVCache
    from workbench.engine import Engine
    from workbench.run import Runner
    from workbench.scheduler import Scheduler

    model = model_of()
    cache = KVCache.for_model(model, 8)
    parts = model, cache, Scheduler(cache), Runner(model, cache)
    with pytest.raises(ConfigError, match=r"loras=.*was made for another model"):
        Engine(*parts, loras=LoRAManager(model_of("qwen2")))
