"""Beam search: transformers' beams, whatever else runs, and whatever befalls single beams."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drive import Alone, MakeEngine, greedy
from tiny import random_prompts
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.engine import Engine
from workbench.errors import RequestError
from workbench.events import BlockShared, Preempted
from workbench.models import resolve_model
from workbench.sampling_params import SamplingParams
from workbench.trace import Trace

PROMPTS = random_prompts(5, seed=91)
RULES = [
    {},
    {"early_stopping": True},
    {"early_stopping": "never"},
    {"length_penalty": 0.0, "early_stopping": "never"},
    {"length_penalty": 2.5},
    {"length_penalty": -1.0, "early_stopping": "never"},
]


def beams(width: int, max_tokens: int = 12, **settings: Any) -> SamplingParams:
    return SamplingParams(**{"beam_width": width, "n": width, "max_tokens": max_tokens, **settings})


def oracle(
    model: Any, prompt: list[int], params: SamplingParams, eos: int | list[int]
) -> list[list[int]]:
    """Return transformers' beams, best first, cut after their end token."""
    out = model.generate(
        torch.tensor([prompt]),
        num_beams=params.beam_width,
        num_return_sequences=params.n,
        max_new_tokens=params.max_tokens,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )
    ends = {eos} if isinstance(eos, int) else set(eos)
    found = []
    for row in out[:, len(prompt) :].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
        found.append(row[: end + 1])
    return found


def made(engine: Engine, prompt: list[int], params: SamplingParams) -> list[list[int]]:
    [output] = engine.generate([prompt], params)
    return [o.token_ids for o in output.outputs]


@pytest.fixture
def model(checkpoint: Callable[[str], Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.float32).eval()


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("width", [1, 2, 4])
def test_beams_equal_transformers(
    make_engine: MakeEngine, model: Any, width: int, rule: dict[str, Any]
) -> None:
    """Random models end often where many tokens count as an end."""
    engine = make_engine(block_size=4)
    for prompt, eos in itertools.product(PROMPTS[:3], ([2], [3, 17, 40, 41])):
        params = beams(width, stop_token_ids=tuple(eos), ignore_eos=True, **rule)
        assert made(engine, prompt, params) == oracle(model, prompt, params, eos)


def test_beams_of_the_embedded_model_equal_transformers() -> None:
    hf = AutoModelForCausalLM.from_pretrained(resolve_model("tinypy"), dtype=torch.float32).eval()
    with wb.LLM("tinypy", device="cpu", dtype="float32", max_sequences=8) as llm:
        assert llm.tokenizer is not None
        for text in ("def add(a, b):\n", "class Stack:\n", "import os\n"):
            ids, params = llm.tokenizer.encode(text), beams(3, 24)
            expected = oracle(hf, ids, params, list(llm.engine.model.config.eos_token_ids))
            assert made(llm.engine, ids, params) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"max_sequences": 4},
        {"num_blocks": 26, "block_size": 4, "max_sequences": 8},
        {"max_batch_tokens": 4, "max_sequences": 4},
        {"prefix_reuse": False, "block_size": 1, "num_blocks": 1000},
        {"chunked_prefill": False},
    ],
    ids=str,
)
def test_beams_among_others_in_tight_places(
    make_engine: MakeEngine, alone: Alone, settings: dict[str, Any]
) -> None:
    params = beams(4, 10, ignore_eos=True)
    expected = [made(make_engine(), prompt, params) for prompt in PROMPTS[:2]]
    engine = make_engine(**settings)
    with Trace.record(engine) as trace:
        outputs = engine.generate(PROMPTS[:4], [params, greedy(14), params, greedy(9)])
    assert [[o.token_ids for o in outputs[i].outputs] for i in (0,)] == expected[:1]
    [second] = [made(make_engine(), PROMPTS[2], params)]
    assert [o.token_ids for o in outputs[2].outputs] == second
    plain = alone([PROMPTS[1], PROMPTS[3]], [greedy(14), greedy(9)])
    assert [outputs[1].outputs[0].token_ids, outputs[3].outputs[0].token_ids] == plain
    assert trace.of(BlockShared)
    if settings.get("num_blocks") == 26:
        assert trace.of(Preempted), "the cache was meant to be too small"


def exhaustive(
    engine: Engine, prompt: list[int], params: SamplingParams, vocab: int
) -> list[list[int]]:
    """Group beam search from its definition, over every token, by scoring whole prompts."""
    width = params.beam_width // params.beam_groups
    groups = [[(0.0, [])] for _ in range(params.beam_groups)]
    for _ in range(params.max_tokens):
        taken: list[int] = []
        for number, group in enumerate(groups):
            pool = []
            for score, tokens in group:
                wanted = SamplingParams(max_tokens=1, temperature=0, logprobs=vocab)
                [output] = engine.generate([[*prompt, *tokens]], wanted)
                for token, logprob in output.outputs[0].logprobs[0].top:
                    penalty = params.diversity_penalty * taken.count(token)
                    pool.append((score + logprob - penalty, [*tokens, token]))
            groups[number] = sorted(pool, key=lambda pair: -pair[0])[:width]
            taken += [tokens[-1] for _, tokens in groups[number]]
    scale = params.max_tokens**params.length_penalty
    ranked = sorted((s / scale, t) for group in groups for s, t in group)
    return [tokens for _, tokens in reversed(ranked)]


@pytest.mark.parametrize("penalty", [0.0, 0.4, 5.0])
def test_diverse_groups_follow_the_definition(make_engine: MakeEngine, penalty: float) -> None:
    engine = make_engine()
    vocab = engine.model.config.vocab_size
    for prompt in PROMPTS[:2]:
        params = beams(
            6, 5, beam_groups=3, diversity_penalty=penalty, ignore_eos=True, early_stopping="never"
        )
        assert made(engine, prompt, params) == exhaustive(engine, prompt, params, vocab)


def test_fewer_outputs_than_beams_and_their_logprobs(make_engine: MakeEngine) -> None:
    engine = make_engine()
    whole = made(engine, PROMPTS[0], beams(4, 8))
    [output] = engine.generate([PROMPTS[0]], beams(4, 8, n=2, logprobs=3))
    assert [o.token_ids for o in output.outputs] == whole[:2]
    for completion in output.outputs:
        assert [entry.token_id for entry in completion.logprobs] == completion.token_ids
        assert {len(entry.top) for entry in completion.logprobs} == {3}


def test_stop_strings_end_beams() -> None:
    with wb.LLM("tinypy", device="cpu", dtype="float32", max_sequences=8) as llm:
        params = beams(3, 30, stop="return", early_stopping=True)
        [output] = llm.generate("def add(a, b):\n", params, progress=False)
        ends = {o.finish_reason: o.stop_reason for o in output.outputs}
        assert ends.get("stop") == "return"
        for completion in output.outputs:
            assert "return" not in completion.text


def test_streaming_shows_the_best_beams_so_far(make_engine: MakeEngine) -> None:
    engine = make_engine()
    name = engine.add(PROMPTS[1], beams(3, 9, n=2))
    seen = list(engine.stream(name))
    assert seen[-1].finished
    assert not seen[0].finished
    assert {len(output.outputs) for output in seen[1:]} == {2}
    assert [o.token_ids for o in seen[-1].outputs] == made(engine, PROMPTS[1], beams(3, 9))[:2]


def test_aborts_and_time_outs_end_all_beams(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    name = engine.add(PROMPTS[0], beams(4, 30, ignore_eos=True))
    engine.run(5)
    assert {o.finish_reason for o in engine.abort(name).outputs} == {"abort"}
    late = engine.add(PROMPTS[0], beams(4, 30, ignore_eos=True), timeout=900.0)
    engine.run(5)
    deadline = engine.requests[late].request.deadline
    monkeypatch.setattr("workbench.scheduler.queues.time.monotonic", lambda: deadline + 1)
    engine.step()
    output = engine.output(late)
    assert output.finished
    assert {o.finish_reason for o in output.outputs} == {"timeout"}


def test_beams_that_cannot_be(make_engine: MakeEngine) -> None:
    for settings, message in (
        ({"seed": 1}, "seed=1: has no meaning for beams"),
        ({"top_k": 5}, "top_k=5: has no meaning"),
        ({"top_p": 0.5}, "not for beams"),
        ({"best_of": 4}, "not with beam_width=4"),
        ({"n": 5}, "not with beam_width=4"),
        ({"beam_groups": 3}, "does not divide 4"),
        ({"early_stopping": "maybe"}, "is no rule"),
        ({"diversity_penalty": -1.0}, "diversity_penalty"),
    ):
        with pytest.raises(RequestError, match=message):
            beams(4, **settings)
    engine = make_engine(max_sequences=4, num_blocks=24, block_size=4)
    with pytest.raises(RequestError, match="more beams than max_sequences=4"):
        engine.add([1, 2], beams(5))
    with pytest.raises(RequestError, match="may need 40 blocks and the whole cache has 24"):
        engine.add([1, 2], beams(4, 38))
    assert not engine.requests


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_beams_that_share_nothing_any_more_take_turns(
    make_engine: MakeEngine, preemption: str
) -> None:
    """Without prefix reuse, beams that lost their blocks come back with blocks of their own each,
    more than the cache has: one that has reported gives way to one that has not, and stays away."""
    params = SamplingParams(beam_width=3, n=3, max_tokens=14, ignore_eos=True)
    prompt = random_prompts(1, seed=3, longest=40)[0][:1] * 28
    plain = make_engine(block_size=4)
    [expected] = plain.generate([prompt], params)
    settings = {"block_size": 4, "num_blocks": 25, "prefix_reuse": False}
    engine = make_engine(**settings, preemption=preemption, host_blocks=60)
    name = engine.add(prompt, params)
    engine.run(11)
    engine.pause(name, release=True)
    engine.resume(name)
    engine.run(600)
    assert not engine.has_work, "the beams keep each other from running"
    assert engine.output(name).outputs == expected.outputs
