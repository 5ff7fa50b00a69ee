"""What Triton compiled is counted, once, and whoever listened before still hears of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from triton import knobs

from workbench.kernels.compilations import Compilation, Compilations


def test_compilations_are_counted_and_told_on(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def earlier(*, src: Any, **others: Any) -> None:
        heard.append(src.name)

    monkeypatch.setattr(knobs.compilation, "listener", earlier)
    compilations = Compilations()
    first = compilations.watch()
    listener = knobs.compilation.listener
    assert listener is not None
    times = knobs.CompileTimes(
        ir_initialization=100_000, lowering_stages=[("ttir", 1_000_000)], store_results=400_000
    )
    for name, hit in (("one", False), ("stored", True), ("two", False)):
        later = compilations.watch()
        src: Any = SimpleNamespace(name=name)
        listener(src=src, metadata={}, metadata_group={}, times=times, cache_hit=hit)
    assert list(first) == [Compilation("one", 1.5), Compilation("two", 1.5)]
    assert list(later) == [Compilation("two", 1.5)]
    assert first.summary == "2 kernels in 3.00 s"
    assert heard == ["one", "stored", "two"]
