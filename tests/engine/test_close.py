"""`close()` and `del` give the memory back, and a closed engine says so."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drive import MakeEngine, greedy
from tiny import TEXTS

import workbench as wb
from workbench.errors import EngineClosed

Folder = Callable[[str], Path]


def make_llm(folder: Path) -> wb.LLM:
    llm = wb.LLM(folder, device="cpu", num_blocks=64)
    llm.generate(TEXTS[0], greedy(4), progress=False)
    return llm


def test_close_frees_model_and_cache(checkpoint: Folder) -> None:
    llm = make_llm(checkpoint("llama"))
    model = weakref.ref(llm.engine.model)
    weight = weakref.ref(llm.engine.model.embedding.weight)
    tensor = weakref.ref(llm.engine.cache.tensor)
    layer = llm.engine.cache.layers[0].untyped_storage()
    storage = weakref.ref(layer)
    del layer
    llm.close()
    gc.collect()
    assert model() is None
    assert weight() is None
    assert tensor() is None
    assert storage() is None
    assert llm.engine.cache.num_bytes == 0


def test_del_frees_without_close(checkpoint: Folder) -> None:
    llm = make_llm(checkpoint("llama"))
    llm.engine.add(TEXTS[1], greedy(50))
    llm.engine.step()
    model, cache = weakref.ref(llm.engine.model), weakref.ref(llm.engine.cache.tensor)
    del llm
    gc.collect()
    assert model() is None
    assert cache() is None


def test_a_recorded_trace_keeps_no_memory(checkpoint: Folder) -> None:
    llm = make_llm(checkpoint("llama"))
    with wb.Trace.record(llm.engine) as trace:
        outputs = llm.generate(TEXTS, greedy(4), progress=False)
    model, cache = weakref.ref(llm.engine.model), weakref.ref(llm.engine.cache.tensor)
    del llm
    gc.collect()
    assert model() is None
    assert cache() is None
    assert len(trace)
    assert outputs[0].outputs[0].text


@pytest.mark.gpu
def test_close_gives_gpu_memory_back(checkpoint: Folder) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    llm = wb.LLM(checkpoint("llama"), device="cuda", num_blocks=4096)
    llm.generate(TEXTS, greedy(4), progress=False)
    assert torch.cuda.memory_allocated() > before + (1 << 20)
    llm.close()
    gc.collect()
    # cuBLAS keeps its workspace for the process.
    assert torch.cuda.memory_allocated() <= before + (64 << 20)


def test_a_closed_engine_refuses_everything(make_engine: MakeEngine) -> None:
    engine = make_engine()
    name = engine.add([1, 2, 3], greedy(40))
    engine.step()
    engine.close()
    engine.close()
    uses = [
        lambda: engine.add([1]),
        lambda: engine.step(),
        lambda: engine.run(),
        lambda: engine.generate([[1]]),
        lambda: next(engine.stream(name)),
        lambda: engine.abort(name),
        lambda: engine.output(name),
        lambda: engine.forget(name),
        lambda: engine.swap(scheduler_policy="fcfs"),
        lambda: wb.Trace.record(engine).__enter__(),
    ]
    for use in uses:
        with pytest.raises(EngineClosed, match="closed; build a new one"):
            use()
    assert "closed" in repr(engine)
    assert "closed" in engine._repr_html_()
    assert not engine.has_work


def test_a_context_manager_closes_after_an_error(checkpoint: Folder) -> None:
    llm = wb.LLM(checkpoint("llama"), device="cpu", num_blocks=64)

    def work() -> None:
        with llm:
            llm.engine.add(TEXTS[0], greedy(9))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert llm.engine.closed
    assert "closed" in repr(llm)
