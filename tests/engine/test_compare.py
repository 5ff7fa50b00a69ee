"""Two runs of one workload side by side: what differs is found, and nothing else is said to."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from drive import MakeEngine, drawn, greedy
from tiny import random_prompts

import workbench as wb
from workbench.data.synthetic import make_synthetic
from workbench.engine import Engine
from workbench.errors import ConfigError, InvalidValue
from workbench.sample import Sampler
from workbench.sampling_params import SamplingParams
from workbench.trace import Comparison, Trace

PROMPTS = random_prompts(4, seed=31, longest=20)


def test_different_settings_equal_tokens(make_engine: MakeEngine) -> None:
    plain = partial(make_engine, num_blocks=40, block_size=4)
    tight = partial(make_engine, num_blocks=9, block_size=4, max_batch_tokens=9)
    params = [greedy(12), drawn(1, 9), SamplingParams(max_tokens=8, temperature=1.0), greedy(5)]
    found = wb.compare(plain, tight, PROMPTS, params, seed=3, names=("plain", "tight"))
    assert found.identical
    assert found.diverging == []
    assert [pair.request_id for pair in found.pairs] == [f"compared-{i}" for i in range(4)]
    assert all(pair.max_logprob_gap < 1e-4 for pair in found.pairs if pair.max_logprob_gap)
    a, b = found.figures
    assert (a.outputs, a.tokens) == (b.outputs, b.tokens) == (4, 12 + 9 + 8 + 5)
    assert a.preemptions == 0 < b.preemptions
    assert b.steps > a.steps
    assert (a.peak_blocks, b.peak_blocks) != (None, None)
    assert a.ttft is not None
    assert a.tpot is not None
    assert "identical=True" in repr(found)


class Changed(Sampler):
    """A planted fault: another token than the one drawn, from one position on."""

    def __init__(self, prompt: list[int], place: int) -> None:
        super().__init__()
        self.prompt, self.place = prompt, place

    def __call__(self, logits: Any, sequences: Any) -> Any:
        sampled = super().__call__(logits, sequences)
        for row, sequence in enumerate(sequences):
            mine = sequence.token_ids[: sequence.num_prompt_tokens] == self.prompt
            if mine and sequence.num_output_tokens == self.place:
                sampled.token_ids[row] = int(logits[row].topk(2).indices[1])
        return sampled


def test_a_planted_divergence_is_found(make_engine: MakeEngine) -> None:
    def faulty() -> Engine:
        engine = make_engine()
        engine.swap(sampler=Changed(PROMPTS[2], 5))
        return engine

    found = wb.compare(make_engine, faulty, PROMPTS, greedy(9))
    assert not found.identical
    [pair] = found.diverging
    assert pair.request_id == "compared-2"
    divergence = pair.divergence
    assert divergence is not None
    assert divergence.position == 5
    assert divergence.token_a is not None
    assert divergence.token_b is not None
    likeliest = [token_id for token_id, _ in divergence.token_a.top]
    assert [divergence.token_a.token_id, divergence.token_b.token_id] == likeliest[:2]
    top = dict(divergence.token_a.top)
    expected = top[likeliest[0]] - top[likeliest[1]]
    assert divergence.margin_a == pytest.approx(expected)
    assert expected > 0
    html = found._repr_html_()
    assert html.count("▶") == 1
    assert "▶ 5" in html
    assert "first divergence=compared-2, output token 5" in repr(found)


def test_an_output_that_ends_early_diverges_at_its_end(make_engine: MakeEngine) -> None:
    traces = []
    for length in (4, 9):
        engine = make_engine()
        with Trace.record(engine) as trace:
            engine.add(PROMPTS[0], greedy(length), request_id="mine")
            engine.run()
        traces.append(trace)
    found = Comparison(*traces)
    [pair] = found.pairs
    assert pair.divergence is not None
    assert (pair.divergence.position, pair.divergence.token_a) == (4, None)
    assert pair.divergence.token_b is not None
    assert pair.divergence.margin_b is None, "nobody asked for log-probabilities"
    assert "ended" in found._repr_html_()


def test_finished_traces_and_text_that_looks_like_html(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    evil = "<script>alert(1)</script>"
    paths = []
    for name, seed in (("one", 1), ("two", 2)):
        engine = make_engine()
        with Trace.record(engine) as trace:
            engine.add(PROMPTS[0], drawn(seed, 12, logprobs=2), request_id=evil)
            engine.add(PROMPTS[1], greedy(3), request_id=f"only {name}")
            engine.run()
        trace.header["texts"] = {str(i): evil for i in range(320)}
        trace.tokenizer = None
        paths.append(trace.save(tmp_path / f"{name}.trace"))
    found = wb.compare(*map(Trace.load, paths), names=(evil, "b"))
    assert [pair.request_id for pair in found.pairs] == [evil]
    assert [log.request_id for log in found.only_a + found.only_b] == ["only one", "only two"]
    assert not found.identical
    html = found._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_a_workload_and_cache_figures(make_engine: MakeEngine) -> None:
    workload = make_synthetic(
        5,
        rate=50.0,
        seed=2,
        prompt_tokens=(4, 16),
        output_tokens=(3, 5),
        num_prefixes=1,
        prefix_tokens=48,
        think_seconds=0.0,
    )
    with_reuse = partial(make_engine, block_size=16)
    without = partial(make_engine, block_size=16, prefix_reuse=False)
    found = wb.compare(with_reuse, without, workload)
    assert found.identical
    a, b = found.figures
    assert a.hit_tokens > 0 == b.hit_tokens
    assert a.hit_tokens + a.missed_tokens == b.missed_tokens == workload.num_prompt_tokens


def test_engines_made_here_are_closed_and_others_are_not(make_engine: MakeEngine) -> None:
    made: list[Engine] = []

    def make() -> Engine:
        made.append(make_engine())
        return made[-1]

    mine = make_engine()
    found = wb.compare(make, mine, PROMPTS[:2], greedy(4))
    assert found.identical
    assert made[0].closed
    assert not mine.closed
    assert mine.requests == {}


@pytest.mark.parametrize(
    ("runs", "rest", "told"),
    [
        ((None, None), (PROMPTS,), "run_a=None: makes no engine"),
        ((lambda: 3, None), (PROMPTS,), "run_a=.*: makes no engine"),
        (({}, {}), (), "workload=None: is nothing to run"),
        (({}, {}), ("text",), "workload='text': is nothing to run"),
        (({"modell": "x"}, {}), (PROMPTS,), "Did you mean `model`"),
    ],
)
def test_bad_input(runs: Any, rest: Any, told: str) -> None:
    with pytest.raises((InvalidValue, ConfigError), match=told):
        wb.compare(*runs, *rest)


def test_as_many_params_as_prompts(make_engine: MakeEngine) -> None:
    with pytest.raises(InvalidValue, match=r"1 of them.* for 4 prompts"):
        wb.compare(make_engine, make_engine, PROMPTS, [greedy(3)])
