"""Log-probabilities of a prompt's tokens: the model's own, whatever is on, and paid for by those
who ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drive import MakeEngine, drawn, greedy
from hf import logprobs, reference
from tiny import VOCAB, random_prompts

from workbench.engine import Engine
from workbench.errors import RequestError
from workbench.events import Preempted, PrefixMiss
from workbench.request import RequestOutput, TokenLogprobs
from workbench.run import reports
from workbench.trace import Trace

Folder = Callable[[str], Path]
Entries = list[TokenLogprobs | None]
PROMPTS = random_prompts(6, seed=120, longest=30)
CLOSE = 2e-4


def entries_of(output: RequestOutput) -> Entries:
    """Return a request's prompt log-probabilities; fail where there are none."""
    assert output.prompt_logprobs is not None
    return output.prompt_logprobs


def assert_same(given: Entries, expected: Entries) -> None:
    """Fail unless two lists hold the same tokens, with values as close as float32 lets them be."""
    assert len(given) == len(expected)
    for one, other in zip(given, expected, strict=True):
        if one is None or other is None:
            assert one is other is None
            continue
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=CLOSE)
        assert [i for i, _ in one.top] == [i for i, _ in other.top]
        assert [v for _, v in one.top] == pytest.approx([v for _, v in other.top], abs=CLOSE)


@pytest.fixture
def plain(make_engine: MakeEngine) -> Callable[[list[int], int], Entries]:
    """Return the oracle: a prompt by itself, in one piece, on the plain backend."""

    def run(prompt: list[int], num_top: int) -> Entries:
        engine = make_engine(backend="reference", prefix_reuse=False)
        return entries_of(engine.generate([prompt], greedy(1, prompt_logprobs=num_top))[0])

    return run


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("budget", [1, 7, 512])
def test_they_are_those_of_a_full_forward(
    make_engine: MakeEngine, checkpoint: Folder, backend: str, device: str, family: str, budget: int
) -> None:
    hf = reference(checkpoint(family), device)
    settings = {"max_batch_tokens": budget, "max_sequences": min(budget, 6)}
    engine = make_engine(family, backend=backend, device=device, **settings)
    params = [greedy(4, prompt_logprobs=k) for k in (0, 3, VOCAB, 1, 5)] + [greedy(4)]
    for prompt, own, output in zip(PROMPTS, params, engine.generate(PROMPTS, params), strict=True):
        if own.prompt_logprobs is None:
            assert output.prompt_logprobs is None
            continue
        whole = logprobs(hf, prompt)
        first, *entries = entries_of(output)
        assert first is None
        assert [entry.token_id for entry in entries] == prompt[1:]
        for row, entry in zip(whole, entries, strict=False):
            assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=CLOSE)
            values, _ = row.topk(own.prompt_logprobs)
            assert [v for _, v in entry.top] == pytest.approx(values.tolist(), abs=CLOSE)
            for token_id, value in entry.top:
                assert value == pytest.approx(row[token_id].item(), abs=CLOSE)


def test_the_choice_of_tokens_plays_no_part(
    make_engine: MakeEngine, plain: Callable[[list[int], int], Entries]
) -> None:
    params = drawn(3, 4, prompt_logprobs=2, top_k=2, min_p=0.3, logit_bias={5: 9.0})
    [output] = make_engine().generate([PROMPTS[1]], params)
    assert_same(entries_of(output), plain(PROMPTS[1], 2))


@pytest.mark.parametrize("prefix_reuse", [True, False])
def test_preempted_in_the_middle_of_a_prompt(
    make_engine: MakeEngine, plain: Callable[[list[int], int], Entries], prefix_reuse: bool
) -> None:
    prompts = random_prompts(6, seed=121, longest=28)
    engine = make_engine(
        num_blocks=16, block_size=4, max_batch_tokens=9, max_sequences=6, prefix_reuse=prefix_reuse
    )
    with Trace.record(engine) as trace:
        outputs = engine.generate(prompts, greedy(30, prompt_logprobs=3))
    lengths = {i: len(prompt) for i, prompt in enumerate(prompts)}
    cut = [e for e in trace.of(Preempted) if 0 < e.num_computed < lengths[e.sequence_id]]
    assert cut, "a sequence was to lose its blocks while its prompt was computed"
    for prompt, output in zip(prompts, outputs, strict=True):
        assert_same(entries_of(output), plain(prompt, 3))


def test_branches_score_the_prompt_once(
    make_engine: MakeEngine,
    plain: Callable[[list[int], int], Entries],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scored = 0

    def count(logits: Any, token_ids: Any, num_top: list[int]) -> list[TokenLogprobs]:
        nonlocal scored
        scored += len(num_top)
        return original(logits, token_ids, num_top)

    original = reports.token_logprobs
    monkeypatch.setattr(reports, "token_logprobs", count)
    prompt = PROMPTS[2]
    for settings in ({}, {"num_blocks": 14, "block_size": 4, "max_sequences": 3}):
        scored = 0
        [output] = make_engine(**settings).generate([prompt], drawn(1, 20, n=4, prompt_logprobs=2))
        assert scored == len(prompt) - 1
        assert_same(entries_of(output), plain(prompt, 2))
        assert len(output.outputs) == 4


def test_a_fork_has_what_its_parent_has(
    make_engine: MakeEngine, plain: Callable[[list[int], int], Entries]
) -> None:
    prompt = list(range(1, 30))
    for steps in (1, 2, 5):
        engine = make_engine(max_batch_tokens=11, max_sequences=4)
        name = engine.add(prompt, greedy(8, prompt_logprobs=4))
        engine.run(steps)
        same = engine.fork(name)
        fewer = engine.fork(name, greedy(9, prompt_logprobs=1))
        without = engine.fork(name, greedy(9))
        with pytest.raises(RequestError, match="prompt_logprobs=5: the forked request has not"):
            engine.fork(name, greedy(9, prompt_logprobs=5))
        engine.run()
        for twin, num_top in ((name, 4), (same, 4), (fewer, 1)):
            assert_same(entries_of(engine.output(twin)), plain(prompt, num_top))
        assert engine.output(without).prompt_logprobs is None
        other = engine.add(prompt, greedy(8))
        with pytest.raises(RequestError, match="prompt_logprobs=0"):
            engine.fork(other, greedy(8, prompt_logprobs=0))
        engine.abort(other)


def test_cached_blocks_are_written_and_not_read(make_engine: MakeEngine) -> None:
    engine = make_engine(block_size=4)
    prompt = list(range(1, 30))

    def run(**settings: Any) -> int:
        return engine.generate([prompt], greedy(2, **settings))[0].metrics.num_cached_tokens

    with Trace.record(engine) as trace:
        assert run(prompt_logprobs=0) == 0
        assert run() == 28, "what the first one computed can be found"
        assert run(prompt_logprobs=0) == 0
        assert run(hidden_states=True) == 0
        assert run() == 28
    reasons = [event.reason for event in trace.of(PrefixMiss)]
    assert reasons.count("the request asks about every token from 0 on") == 3


def test_a_prompt_of_one_token_asks_nothing(make_engine: MakeEngine) -> None:
    [output] = make_engine().generate([[5]], greedy(3, prompt_logprobs=3))
    assert output.prompt_logprobs == [None]


def test_the_output_grows_with_the_prompt(make_engine: MakeEngine) -> None:
    engine = make_engine(max_batch_tokens=4, max_sequences=1)
    name = engine.add(list(range(1, 13)), greedy(1, prompt_logprobs=0))
    lengths = [len(entries_of(engine.output(name)))]
    while engine.has_work:
        engine.step()
        lengths.append(len(entries_of(engine.output(name))))
    assert lengths == [1, 5, 9, 12]
    assert "12 tokens" in engine.output(name)._repr_html_()


def test_logits_of_a_prompt_are_never_held_whole(
    make_engine: MakeEngine,
    plain: Callable[[list[int], int], Entries],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine()
    expected = [plain(prompt, 3) for prompt in PROMPTS]
    monkeypatch.setattr(reports, "SLICE_ELEMENTS", 3 * VOCAB + 1)
    sizes = []
    logits = engine.model.logits

    def watched(*args: Any) -> Any:
        result = logits(*args)
        sizes.append(len(result))
        return result

    monkeypatch.setattr(engine.model, "logits", watched)
    names = [engine.add(prompt, greedy(1, prompt_logprobs=3)) for prompt in PROMPTS]
    engine.step()
    scored = sum(map(len, PROMPTS)) - len(PROMPTS)
    assert sizes == [3] * (scored // 3) + ([scored % 3] if scored % 3 else []) + [len(PROMPTS)]
    for name, entries in zip(names, expected, strict=True):
        assert_same(entries_of(engine.output(name)), entries)


def test_a_failed_step_reports_nothing_twice(
    make_engine: MakeEngine, plain: Callable[[list[int], int], Entries]
) -> None:
    engine = make_engine(max_batch_tokens=10, max_sequences=2)
    name = engine.add(PROMPTS[2], greedy(3, prompt_logprobs=1, hidden_states=True))
    sampler, failing = engine.sampler, True

    def fail_every_other(logits: Any, rows: Any) -> Any:
        nonlocal failing
        failing = not failing
        if not failing:
            raise ArithmeticError
        return sampler(logits, rows)

    engine.sampler = fail_every_other  # type: ignore[assignment]
    while engine.has_work:
        try:
            engine.step()
        except ArithmeticError:
            continue
    output = engine.output(name)
    assert_same(entries_of(output), plain(PROMPTS[2], 1))
    assert output.outputs[0].hidden_states.shape[0] == len(PROMPTS[2]) + 2


def test_whoever_does_not_ask_pays_nothing(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("nobody asked")

    def run(engine: Engine, **settings: Any) -> None:
        engine.generate(PROMPTS, greedy(4, **settings))

    for name in ("_report_logprobs", "_report_activations"):
        monkeypatch.setattr(reports, name, refuse)
    engine = make_engine()
    monkeypatch.setattr(type(engine.model.layers[0]), "register_forward_hook", refuse)
    run(engine, logprobs=2)
    for asking in ({"prompt_logprobs": 0}, {"activations": ["layers.0"]}):
        with pytest.raises(AssertionError, match="nobody asked"):
            run(make_engine(), **asking)


def test_more_than_the_vocabulary(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(RequestError, match=rf"prompt_logprobs={VOCAB + 1}: the model has only"):
        engine.add([1], greedy(prompt_logprobs=VOCAB + 1))
    with pytest.raises(RequestError, match="prompt_logprobs=-1"):
        greedy(prompt_logprobs=-1)
    assert engine.requests == {}
