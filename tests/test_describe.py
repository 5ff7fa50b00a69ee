"""Every component shows itself in one line."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import workbench
from workbench.describe import Described
from workbench.metrics import RequestMetrics
from workbench.request import CompletionOutput, Request, RequestOutput
from workbench.sampling_params import SamplingParams
from workbench.step_plan import StepPlan

PARTS = "cache", "engine", "lora", "sample", "scheduler", "speculation", "trace", "run", "debug"


def below(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


def test_no_dataclass_hides_the_line_behind_all_it_holds() -> None:
    """`@dataclass` writes a repr of its own unless it is told not to."""
    for part in PARTS:
        package = importlib.import_module(f"workbench.{part}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    ours = [kind for kind in below(Described) if kind.__module__.startswith(workbench.__name__)]
    assert len(ours) > 40
    generated = [k.__name__ for k in ours if dataclasses.is_dataclass(k) and "__repr__" in vars(k)]
    assert generated == []


def output(text: str) -> RequestOutput:
    done = CompletionOutput(0, text, [5] * 900, "length", None, None)
    return RequestOutput("r0", "def f(\n", [1] * 900, [done], True, RequestMetrics(1.0))


def test_an_output_is_one_short_line() -> None:
    line = repr(output("a\nb" * 300))
    assert "\n" not in line
    assert len(line) < 300
    assert r"prompt='def f(\n'" in line
    assert "output 0='x y'" in repr(output("x y"))
    assert "…" in line


def test_parameters_show_what_differs() -> None:
    assert repr(SamplingParams()) == "SamplingParams()"
    params = SamplingParams(max_tokens=3, stop="x", logit_bias={5: 1})
    assert repr(params) == "SamplingParams(max_tokens=3, stop=('x',), logit_bias=((5, 1.0),))"
    assert eval(repr(params), {"SamplingParams": SamplingParams}) == params


def test_metrics_show_what_one_looks_for() -> None:
    metrics = RequestMetrics(10.0, 10.001, 10.02, 10.12, num_output_tokens=11)
    facts = metrics.describe()
    assert (facts["TTFT ms"], facts["TPOT ms"], facts["in all ms"]) == (20.0, 10.0, 120.0)
    assert "acceptance length" not in facts
    metrics.add_draft(4, 3, "")
    assert metrics.describe()["acceptance length"] == "4.00 (100%, 100%, 100%)"
    assert "TTFT ms" not in RequestMetrics(1.0).describe()


@pytest.mark.parametrize("shown", [StepPlan(3), Request("r1", "a\nb", (1, 2), SamplingParams())])
def test_plans_and_requests_are_a_line(shown: Described) -> None:
    assert "\n" not in repr(shown)
    assert len(repr(shown)) < 200
