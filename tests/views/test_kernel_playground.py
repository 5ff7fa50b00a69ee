"""The playground's traits: what is selected is tried in the background, failures have reasons."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from workbench.errors import ConfigError
from workbench.playground import session
from workbench.playground.client import Worker
from workbench.playground.subject import Trial
from workbench.playground.sweep import Sweep

Make = Callable[..., Any]
CONFIGS = [{"BLOCK": block, "num_warps": warps} for block in (64, 128, 256) for warps in (1, 2)]


class Lent:
    """A worker that goes on running when its borrower closes it."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def workers() -> Iterator[dict[bool | None, Worker]]:
    """One that tries and one that compiles, for all tests: starting them takes seconds."""
    with Worker() as tries, Worker(interpret=False) as compiles:
        yield {None: tries, False: compiles}


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, workers: dict[bool | None, Worker]) -> Iterator[Make]:
    """Return a function that makes playgrounds; they are closed afterwards."""
    monkeypatch.setattr(session, "Worker", lambda interpret=None: Lent(workers[interpret]))
    made: list[Any] = []

    def build(*arguments: Any, **settings: Any) -> Any:
        made.append(wb.views.KernelPlayground(*arguments, **settings))
        return made[-1]

    yield build
    for each in made:
        each.close()


def recorded() -> Sweep:
    """Return a sweep as a GPU's, of numbers that are plainly made for a test."""
    header = {"format": 1, "kernel": "silu_mul", "case": "llama-8b decode 1", "dtype": "bfloat16"}
    header |= {"seed": 0, "device": "Test GPU", "when": "2026-11-25", "target": "cuda:90"}
    header |= {"space": {"BLOCK": [64, 128, 256], "num_warps": [1, 2]}, "num_configs": 6}
    header |= {"num_bytes": 1000, "flops": 500, "source_hash": "0", "bucket": "b", "rotated": 2}
    header["ceilings"] = {"copy": 4e12, "read": 4e12, "gemm": 8e14}
    sweep = Sweep(header)
    for place, config in enumerate(CONFIGS):
        us = {"p10": 1.0, "p50": 2.0 + place, "p90": 9.0, "n": 100, "rel_error": 0.001}
        sweep.add(Trial(config, "ok", us=us, default_us=2.0, max_err=0.0, share=0.0))
    sweep.add(Trial({"BLOCK": 256, "num_warps": 2}, "out of resources", "shared memory"))
    return sweep


def test_what_is_selected_is_tried_and_compiled_in_the_background(make: Make) -> None:
    view = make("silu_mul", "odd width")
    assert view.wait(240), view.state
    assert view.choice["kernel"] == "silu_mul"
    (row,) = view.rows
    assert (row["status"], row["config"]) == ("ok", view.config)
    assert (row["us"] is None) == (not torch.cuda.is_available())
    assert view.listing["stage"] == "ttgir"
    assert view.listing["source"].startswith('"""')
    key = " ".join(f"{name}={view.config[name]}" for name in sorted(view.config))
    assert view.taken[f"cuda:90 {key}"][0]["registers"] > 0
    view.pin()
    view.config = {**view.config, "BLOCK": 64}  # as the browser does
    assert view.wait(240)
    assert len(view.rows) == 2
    assert view.comparison["lines"]
    view._command(None, {"command": "list", "stage": "sass", "launch": 0}, [])
    assert view.wait(240)
    assert "EXIT" in view.listing["text"]
    assert "2 of 6" in view.summary()
    assert len(view.trials()) == 2
    assert view.to_png().startswith(b"\x89PNG")


def test_a_configuration_outside_the_filter_is_tried_and_its_failure_has_a_reason(
    make: Make,
) -> None:
    view = make("silu_mul", "odd width")
    assert view.wait(240)
    view.choose(config={"BLOCK": 100, "num_warps": 1})  # no power of two
    assert view.wait(240)
    row = next(row for row in view.rows if row["config"]["BLOCK"] == 100)
    assert row["status"] not in ("ok", "wrong")
    assert "power of 2" in row["reason"] + view.listing["problem"]
    view.choose(config=view.facts["configs"][0])
    assert view.wait(240)
    assert view.listing["problem"] == ""


def test_a_recorded_sweep_is_called_so_and_nothing_is_tried(make: Make) -> None:
    view = make(recorded=recorded())
    assert view.facts["title"].startswith("recorded 2026-11-25 on Test GPU")
    assert len(view.rows) == 6
    assert view.summary().startswith("recorded")
    view.sweep()
    assert "not swept again" in view.session.notice
    assert view.session.trying is None
    view.choose("silu_mul", "odd width")
    assert view.facts == {} or view.facts["title"] == ""
    assert view.wait(240)
    assert [row["status"] for row in view.rows] == ["ok"]


def test_cancel_stops_at_once_and_the_playground_goes_on(make: Make) -> None:
    view = make("paged_decode", "split")
    assert view.wait(240)
    view.sweep()
    timer = threading.Timer(0.5, view.cancel)
    timer.start()
    assert view.wait(240)
    assert len(view.rows) < len(view.facts["configs"])
    view.choose(config=view.facts["configs"][-1])
    assert view.wait(240)
    assert view.session.trial is not None


def test_what_is_unknown_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such kernel"):
        make("softmax")
    with pytest.raises(ConfigError, match="no such case"):
        make("silu_mul", "none")
    view = make("silu_mul", "odd width")
    with pytest.raises(ConfigError, match="is not offered"):
        view.choose(target="cuda:1")
    view._command(None, {"command": "dance"}, [])
    assert "is no command" in view.session.notice
