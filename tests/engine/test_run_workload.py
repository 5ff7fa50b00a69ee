"""A workload runs to its end in virtual time, and its latencies follow from the clock given."""

from __future__ import annotations

import time
from typing import Any

import pytest
from drive import MakeEngine, greedy

from workbench.data.synthetic import make_synthetic
from workbench.data.workload import TimedRequest, Workload
from workbench.errors import InvalidValue
from workbench.trace import run_workload


def test_latencies_in_virtual_time(make_engine: MakeEngine) -> None:
    """Each step takes 1 s: every time can be told in advance."""
    requests = (
        TimedRequest(0.0, 4, 3, (1,)),
        TimedRequest(1.5, 4, 2, (2,)),
        TimedRequest(100.0, 4, 1, (3,)),
    )
    engine = make_engine(max_batch_tokens=64)
    result = run_workload(engine, Workload("w", requests, 4), step_seconds=lambda record: 1.0)
    first, second, third = result.timings
    assert (first.ttft, first.finished, first.tpot) == (1.0, 3.0, 1.0)
    assert (second.added, second.first_token, second.ttft, second.finished) == (2.0, 3.0, 1.5, 4.0)
    assert (third.added, third.ttft, third.tpot) == (100.0, 1.0, None)
    assert (result.seconds, result.busy_seconds, result.num_steps) == (101.0, 5.0, 5)
    assert [t.num_output for t in result.timings] == [3, 2, 1]
    assert {t.finish_reason for t in result.timings} == {"length"}
    assert engine.requests == {}
    facts = result.describe()
    assert facts["TTFT ms (p50, p90, p99)"] == "1000.0, 1500.0, 1500.0"
    assert facts["output tokens/s"] == round(6 / 101, 1)


def test_sharing_reaches_the_cache(make_engine: MakeEngine) -> None:
    workload = make_synthetic(
        6,
        rate=2.0,
        seed=1,
        prompt_tokens=(4, 20),
        output_tokens=(2, 4),
        num_prefixes=1,
        prefix_tokens=64,
        think_seconds=0.0,
    )
    engine = make_engine(block_size=16)
    result = run_workload(engine, workload, step_seconds=lambda record: 0.01)
    assert not result.refused
    assert result.timings[0].num_cached == 0
    assert all(timing.num_cached >= 64 for timing in result.timings[1:])
    assert result.hit_rate == pytest.approx(
        workload.num_shared_tokens / workload.num_prompt_tokens, abs=0.02
    )


def test_what_cannot_fit_is_told(make_engine: MakeEngine) -> None:
    requests = (TimedRequest(0.0, 8, 1, (1,)), TimedRequest(0.0, 400, 1, tuple(range(50))))
    result = run_workload(make_engine(), Workload("w", requests, 8))
    assert [timing.request_id for timing in result.timings] == ["w-0"]
    [(request, why)] = result.refused
    assert request.num_prompt == 400
    assert "context" in why


def test_real_time_waits(make_engine: MakeEngine) -> None:
    requests = (TimedRequest(0.0, 4, 1, (1,)), TimedRequest(0.3, 4, 1, (2,)))
    start = time.perf_counter()
    result = run_workload(make_engine(), Workload("w", requests, 4), clock="real")
    assert time.perf_counter() - start >= 0.3
    assert result.timings[1].added >= 0.3


def test_an_interrupt_leaves_nothing_behind(make_engine: MakeEngine) -> None:
    engine = make_engine()
    mine = engine.add([1, 2, 3], greedy(4))
    workload = make_synthetic(4, rate=100.0, seed=1, prompt_tokens=(4, 8), output_tokens=(4, 4))

    def stop(record: Any) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_workload(engine, workload, step_seconds=stop)
    assert list(engine.requests) == [mine]
    engine.run()


def test_bad_input(make_engine: MakeEngine) -> None:
    engine, workload = make_engine(), make_synthetic(1, rate=1.0, seed=0)
    with pytest.raises(InvalidValue, match="clock='fast': no such clock"):
        run_workload(engine, workload, clock="fast")  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="cannot change real time"):
        run_workload(engine, workload, clock="real", step_seconds=lambda record: 1.0)
