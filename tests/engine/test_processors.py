"""Logits processing end to end: transformers' tokens, and failures that stay with their request."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from drive import Alone, MakeEngine, drawn, greedy, tokens_of
from sampling import processed
from tiny import EOS, random_prompts

from workbench import events
from workbench.errors import GuideFailed, ProcessorFailed, RequestError
from workbench.sample import Sampler
from workbench.sampling_params import SamplingParams
from workbench.trace import Trace

Folder = Callable[[str], Path]
PROMPTS = [*random_prompts(4, seed=140, longest=30), [5, 6, 7, 8] * 5]


def hf_model(folder: Path) -> Any:
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"repetition_penalty": 1.8}, {}),
        ({"no_repeat_ngram_size": 2}, {}),
        ({"no_repeat_ngram_size": 1}, {}),
        ({"bad_words": True}, {}),
        ({"min_tokens": 20}, {"min_new_tokens": 20}),
        ({"repetition_penalty": 0.5, "no_repeat_ngram_size": 3, "bad_words": True}, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@torch.inference_mode()
def test_greedy_tokens_equal_transformers(
    make_engine: MakeEngine,
    checkpoint: Folder,
    family: str,
    settings: dict[str, Any],
    theirs: dict[str, Any],
) -> None:
    engine = make_engine(family, max_batch_tokens=24)
    plain = tokens_of(engine, PROMPTS, greedy(30))
    if settings.get("bad_words"):  # what greedy decoding would say, by the token and by the pair
        words = [[row[3]] for row in plain] + [row[8:10] for row in plain]
        settings = {**settings, "bad_words": words}
        theirs = {**theirs, "bad_words_ids": words}
    shared = ("repetition_penalty", "no_repeat_ngram_size")
    theirs = {**theirs, **{name: settings[name] for name in shared if name in settings}}
    # An end token that greedy decoding comes to early, so that `min_tokens` has work.
    end = plain[0][6] if "min_tokens" in settings else None
    params = SamplingParams(
        max_tokens=30,
        temperature=0,
        ignore_eos=True,
        stop_token_ids=() if end is None else (end,),
        **settings,
    )
    found = tokens_of(engine, PROMPTS, params)
    hf = hf_model(checkpoint(family))
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        out = hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=30,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=0,
            **theirs,
        )
        assert tokens == out[0, len(prompt) :].tolist()
    assert found != plain


@pytest.mark.parametrize("width", [2, 5])
@torch.inference_mode()
def test_beams_equal_transformers(make_engine: MakeEngine, checkpoint: Folder, width: int) -> None:
    """Its beam search processes log-probabilities, and does not normalise them again."""
    engine = make_engine(max_batch_tokens=24)
    common: dict[str, Any] = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2}
    words = [[9], [17, 40], [33]]
    plain = engine.generate(PROMPTS, SamplingParams(max_tokens=12, beam_width=width, n=width))
    params = SamplingParams(
        max_tokens=12, beam_width=width, n=width, min_tokens=3, bad_words=words, **common
    )
    outputs = engine.generate(PROMPTS, params)
    hf = hf_model(checkpoint("llama"))
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        ids = torch.tensor([prompt])
        out = hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=12,
            min_new_tokens=3,
            bad_words_ids=words,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=EOS,
            **common,
        )
        for tokens, row in zip(output.outputs, out[:, len(prompt) :].tolist(), strict=True):
            assert tokens.token_ids == row[: len(tokens.token_ids)]
            assert set(row[len(tokens.token_ids) :]) <= {EOS}
    changed = [a.outputs != b.outputs for a, b in zip(plain, outputs, strict=True)]
    assert sum(changed) >= 3


@torch.inference_mode()
def test_penalties_and_bias_equal_their_definition_step_by_step(
    make_engine: MakeEngine, checkpoint: Folder
) -> None:
    hf = hf_model(checkpoint("llama"))
    params = greedy(
        25,
        presence_penalty=2.0,
        frequency_penalty=1.0,
        logit_bias={9: 3.0, 40: -math.inf, 17: 2.0},
    )
    engine = make_engine(max_batch_tokens=24)
    names = [engine.add(prompt, params) for prompt in PROMPTS]
    while engine.has_work:
        before = {name: list(engine.requests[name].sequences[0].token_ids) for name in names}
        for token in engine.step().tokens:
            sequence = engine.requests[token.request_id].sequences[0]
            row = hf(torch.tensor([before[token.request_id]])).logits[0, -1].tolist()
            made, sequence.token_ids = sequence.token_ids, before[token.request_id]
            values = processed(row, sequence)
            sequence.token_ids = made
            assert values[token.token_id] == pytest.approx(max(values), abs=1e-4)
    plain = tokens_of(make_engine(), PROMPTS, greedy(25))
    assert [engine.output(name).outputs[0].token_ids for name in names] != plain


def test_bad_words_as_text(make_engine: MakeEngine) -> None:
    engine = make_engine()
    plain = engine.generate(PROMPTS, greedy(30))
    words = [engine.tokenizer.decode([o.outputs[0].token_ids[5]]) for o in plain]
    words = [word.strip() for word in words if word.strip() and "\ufffd" not in word]
    assert words
    outputs = engine.generate(PROMPTS, greedy(30, bad_words=words))
    for output in outputs:
        for token_id in output.outputs[0].token_ids:
            assert engine.tokenizer.decode([token_id]).strip() not in words
    made = engine.add(PROMPTS[0], drawn(1, bad_words=words, n=2))
    engine.run(4)
    twin = engine.fork(made, greedy(30, bad_words=[[1, 2]]))
    assert engine.requests[twin].sequences[0].bad_word_ids == ((1, 2),)
    branches = engine.requests[made].sequences
    assert branches[0].bad_word_ids == branches[1].bad_word_ids != ()
    with pytest.raises(RequestError, match="bad_words"):
        engine.fork(made, greedy(30, bad_words=["\ud800"]))
    assert len(engine.requests) == 2, "nothing was entered"
    engine.run()


def test_min_tokens_holds_the_end_back(make_engine: MakeEngine) -> None:
    engine = make_engine()
    bias = {EOS: 100.0}
    free = SamplingParams(max_tokens=20, temperature=0, logit_bias=bias)
    held = SamplingParams(max_tokens=20, temperature=0, logit_bias=bias, min_tokens=7)
    lengths = [len(tokens) for tokens in tokens_of(engine, PROMPTS, [free] * 5)]
    assert lengths == [1] * 5
    assert [len(tokens) for tokens in tokens_of(engine, PROMPTS, [held] * 5)] == [8] * 5


def raising_at(length: int) -> Callable[..., Any]:
    def processor(token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        if len(token_ids) == length:
            raise ValueError("no idea")
        return logits

    return processor


@pytest.mark.parametrize("kind", [greedy, lambda n, **more: drawn(3, n, **more)], ids=["g", "d"])
def test_a_failing_processor_ends_its_request_alone(
    make_engine: MakeEngine, alone: Alone, kind: Any
) -> None:
    expected = alone(PROMPTS, kind(16))
    engine = make_engine(block_size=4, num_blocks=40)
    bad = raising_at(len(PROMPTS[1]) + 5)
    params = [kind(16), kind(16, logits_processors=[bad], logprobs=1), *[kind(16)] * 3]
    with Trace.record(engine) as trace:
        outputs = engine.generate(PROMPTS, params)
    tokens = [output.outputs[0].token_ids for output in outputs]
    assert tokens == [expected[0], expected[1][:5], *expected[2:]]
    failed = outputs[1].outputs[0]
    message = "logits_processors[0] (processor): raised ValueError: no idea"
    assert (failed.finish_reason, failed.error) == ("error", message)
    assert failed.logprobs is not None
    assert len(failed.logprobs) == 5
    assert [o.outputs[0].error for o in outputs[2:]] == [None] * 3
    [event] = trace.of(events.RequestFailed)
    assert event.message == message
    [ended] = [e for e in trace.of(events.RequestFinished) if e.reason == "error"]
    assert ended.sequence_id == event.sequence_id


class Counting:
    """A guide that lets tokens of a range through, notes them, and may give up after some."""

    def __init__(self, low: int, high: int, patience: int = 99) -> None:
        self.low, self.high, self.patience = low, high, patience
        self.taken: list[int] = []

    def accept(self, token_id: int) -> None:
        self.taken.append(token_id)
        if len(self.taken) == self.patience:
            raise GuideFailed("out of patience")

    def fill(self, row: torch.Tensor) -> None:
        row.zero_()
        for token_id in range(self.low, self.high):
            row[token_id // 32] |= 1 << (token_id % 32) if token_id % 32 < 31 else -(1 << 31)

    def fork(self) -> Counting:
        raise AssertionError("nobody forks here")

    def rollback(self, num_tokens: int) -> None:
        raise AssertionError("nobody forks here")

    @property
    def finished(self) -> bool:
        return False


def test_guides_are_asked_and_told_and_may_fail(make_engine: MakeEngine, alone: Alone) -> None:
    expected = alone(PROMPTS, greedy(12))
    engine = make_engine(num_blocks=12, block_size=4)
    names = [engine.add(prompt, greedy(12)) for prompt in PROMPTS]
    guides = {1: Counting(30, 64), 2: Counting(100, 200, patience=4)}
    for place, guide in guides.items():
        engine.requests[names[place]].sequences[0].guide = guide
    with Trace.record(engine) as trace:
        engine.run()
    assert trace.of(events.Preempted)
    outputs = [engine.output(name).outputs[0] for name in names]
    for place in (0, 3, 4):
        assert outputs[place].token_ids == expected[place]
    for place, guide in guides.items():
        assert outputs[place].token_ids == guide.taken
        assert all(guide.low <= token_id < guide.high for token_id in guide.taken)
    assert outputs[1].finish_reason == "length"
    assert (outputs[2].finish_reason, len(outputs[2].token_ids)) == ("error", 4)
    assert outputs[2].error == "guided_decoding: out of patience"
    [failure] = trace.of(events.RequestFailed)
    assert failure.message == outputs[2].error


def test_a_failing_branch_goes_last(make_engine: MakeEngine) -> None:
    """And its siblings go on: a branch has its own tokens, so its own failures."""
    calls: list[int] = []

    def once(token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        calls.append(len(token_ids))
        if len(calls) == 8:
            raise ValueError("no idea")
        return logits

    [output] = make_engine().generate([[1, 2, 3]], drawn(1, 9, n=3, logits_processors=[once]))
    reasons = [completion.finish_reason for completion in output.outputs]
    assert sorted(str(reason) for reason in reasons) == ["error", "length", "length"]
    calls.clear()
    params = drawn(1, 9, n=2, best_of=3, logits_processors=[once])
    [output] = make_engine().generate([[1, 2, 3]], params)
    assert [completion.finish_reason for completion in output.outputs] == ["length", "length"]


def test_a_contradiction_ends_its_request(make_engine: MakeEngine, alone: Alone) -> None:
    engine = make_engine()
    everything = [[token_id] for token_id in range(1, engine.model.config.vocab_size)]
    params = [
        greedy(8),
        SamplingParams(max_tokens=8, temperature=0, bad_words=everything, min_tokens=3),
    ]
    outputs = engine.generate(PROMPTS[:2], params)
    assert outputs[0].outputs[0].token_ids == alone(PROMPTS[:1], greedy(8))[0]
    assert outputs[1].outputs[0].error == "bad_words, min_tokens: forbid every token"


def test_a_failing_batch_processor_fails_the_step_until_it_is_swapped(
    make_engine: MakeEngine, alone: Alone
) -> None:
    expected = alone(PROMPTS, greedy(12))
    engine = make_engine(max_batch_tokens=16)
    names = [engine.add(prompt, greedy(12)) for prompt in PROMPTS]
    engine.run(3)

    def broken(logits: torch.Tensor, sequences: list[Any]) -> torch.Tensor:
        raise ValueError("no idea")

    engine.swap(sampler=Sampler([broken]))
    for _ in range(3):
        with pytest.raises(ProcessorFailed, match="broken: raised ValueError: no idea"):
            engine.step()
        engine.cache.check()
    engine.swap(sampler=Sampler())
    engine.run()
    assert [engine.output(name).outputs[0].token_ids for name in names] == expected


def test_a_processor_may_use_the_engine(make_engine: MakeEngine, alone: Alone) -> None:
    """To add is allowed; what belongs between two steps is refused, and so fails the request."""
    expected = alone(PROMPTS, greedy(10))
    engine = make_engine()
    others: list[str] = []

    def adding(token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        if len(others) < 3:
            others.append(engine.add(PROMPTS[len(others)], greedy(10)))
        return logits

    names = [engine.add(PROMPTS[3], greedy(10, logits_processors=[adding]))]
    meddling = {
        "step": engine.step,
        "abort": lambda: engine.abort(names[0]),
        "fork": lambda: engine.fork(names[0]),
        "close": engine.close,
        "generate": lambda: engine.generate([[1]]),
    }
    refused = [
        engine.add(PROMPTS[4], greedy(10, logits_processors=[lambda t, x, act=act: act() or x]))
        for act in meddling.values()
    ]
    engine.run()
    assert [engine.output(name).outputs[0].token_ids for name in others] == expected[:3]
    assert engine.output(names[0]).outputs[0].token_ids == expected[3]
    for name, action in zip(refused, meddling, strict=True):
        error = engine.output(name).outputs[0].error
        assert error is not None
        assert f"StepInProgress: {action}: refused during sampling" in error
    assert set(engine.requests) == {*names, *others, *refused}
