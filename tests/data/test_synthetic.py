"""Synthetic workloads: the same for the same seed, with the arrivals and sharing asked for."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import pytest

from workbench.data.synthetic import make_synthetic
from workbench.data.workload import TimedRequest, Workload
from workbench.errors import InvalidValue

CHAT: dict[str, Any] = {
    "rate": 2.0,
    "prompt_tokens": (10, 40),
    "output_tokens": (5, 30),
    "num_prefixes": 2,
    "prefix_tokens": 100,
    "turns": (2, 4),
}


def gaps(workload: Workload) -> list[float]:
    times = [request.arrival for request in workload]
    return [later - sooner for sooner, later in itertools.pairwise(times)]


def test_the_same_seed_is_the_same_workload() -> None:
    assert make_synthetic(30, seed=5, **CHAT) == make_synthetic(30, seed=5, **CHAT)
    assert make_synthetic(30, seed=5, **CHAT) != make_synthetic(30, seed=6, **CHAT)


@pytest.mark.parametrize(("arrivals", "low", "high"), [("poisson", 0.9, 1.1), ("bursty", 3.2, 4.8)])
def test_arrivals(arrivals: str, low: float, high: float) -> None:
    """4000 gaps of a fixed seed: their mean is 1/rate, and they vary as they should."""
    found = gaps(make_synthetic(4000, rate=5.0, seed=3, arrivals=arrivals))
    mean = statistics.fmean(found)
    assert 0.17 < mean < 0.23
    assert low < statistics.stdev(found) / mean < high
    assert min(found) >= 0


def test_turns_say_all_that_was_said_before() -> None:
    workload = make_synthetic(20, seed=1, **CHAT)
    sessions: dict[int | None, list[TimedRequest]] = {}
    for request in workload:
        sessions.setdefault(request.session, []).append(request)
    assert len(sessions) == 20
    assert {len(turns) for turns in sessions.values()} == {2, 3, 4}
    for turns in sessions.values():
        assert [request.turn for request in turns] == list(range(len(turns)))
        for before, after in itertools.pairwise(turns):
            assert after.block_ids[: len(before.block_ids)] == before.block_ids
            assert after.arrival > before.arrival
            assert after.num_prompt >= before.num_prompt + before.num_output
    assert len({turns[0].block_ids[:7] for turns in sessions.values()}) == 2, "two system prompts"
    assert workload.num_shared_tokens > workload.num_prompt_tokens / 2
    for request in workload:
        assert len(workload.prompt(request, 300)) == request.num_prompt


@pytest.mark.parametrize("tokens", [0.01, 0.1, 0.33, 1.0, 1.7])
def test_scaling_keeps_what_is_shared(tokens: float) -> None:
    workload = make_synthetic(20, seed=2, **CHAT)
    small = workload.scaled(time=0.5, tokens=tokens)
    assert [r.arrival for r in small] == [r.arrival / 2 for r in workload]
    for request in small:
        assert request.num_output >= 1
        prompt = small.prompt(request, 400)
        assert len(prompt) == request.num_prompt >= 1
    one, other = small.requests[0], small.requests[-1]
    alike = sum(a == b for a, b in zip(one.block_ids, other.block_ids, strict=False))
    size = small.tokens_per_block
    assert small.prompt(one, 400)[: alike * size] == small.prompt(other, 400)[: alike * size]
    share = small.num_shared_tokens / small.num_prompt_tokens
    assert share == pytest.approx(workload.num_shared_tokens / workload.num_prompt_tokens, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arrivals": "weekly"}, "arrivals='weekly': no such kind"),
        ({"rate": 0.0}, "rate=0.0: must be above 0"),
        ({"prompt_tokens": (5, 4)}, r"prompt_tokens=\(5, 4\)"),
        ({"output_tokens": (0, 4)}, r"output_tokens=\(0, 4\)"),
        ({"turns": (0, 1)}, r"turns=\(0, 1\)"),
        ({"num_prefixes": 2, "prefix_tokens": 0}, "num_prefixes=2"),
        ({"think_seconds": -1.0}, "think_seconds=-1.0"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidValue, match=told):
        make_synthetic(3, seed=0, **{**CHAT, **changes})


def test_bad_scales_and_vocabularies() -> None:
    workload = make_synthetic(1, seed=0, **CHAT)
    with pytest.raises(InvalidValue, match="tokens=0: must be above 0"):
        workload.scaled(tokens=0)
    with pytest.raises(InvalidValue, match="vocab_size=20: too few tokens"):
        workload.prompt(workload.requests[0], 20)
    assert len(workload.first(0)) == 0
    assert workload.first(0).describe()["requests"] == 0
