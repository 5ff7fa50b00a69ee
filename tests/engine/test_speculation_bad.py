"""Proposers that fail: their requests end with that error, or decode on plainly and say so."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drafting import RandomTrees, Says
from drive import Alone, MakeEngine, greedy
from tiny import random_prompts

from workbench.config import EngineConfig
from workbench.errors import ConfigError
from workbench.llm import LLM
from workbench.speculation import (
    Draft,
    DraftModel,
    EarlyExit,
    NGram,
    ProposalContext,
    SpeculationConfig,
    SuffixAutomaton,
)
from workbench.speculation import rules as all_rules

PROMPTS = random_prompts(3, seed=12)


def each(make: Callable[[], Any]) -> Callable[[ProposalContext], list[Any]]:
    return lambda context: [make() for _ in context.candidates]


def raising(context: ProposalContext) -> Any:
    raise KeyError("mine")


def too_deep(context: ProposalContext) -> Any:
    return [Draft((1,) * (c.max_depth + 1)) for c in context.candidates]


WRONG: dict[str, tuple[Callable[[ProposalContext], Any], str]] = {
    "raises": (raising, "proposer 'says': raised KeyError: 'mine'"),
    "no list": (lambda _: None, "returned NoneType for"),
    "too few": (lambda _: [], "returned 0 for"),
    "no draft": (each(lambda: [1, 2]), "is no Draft"),
    "out of range": (each(lambda: Draft((5, 320))), "outside the vocabulary of 320"),
    "negative": (each(lambda: Draft((-1,))), "outside the vocabulary"),
    "duplicates": (each(lambda: Draft((5, 5), (-1, -1))), "twice below node -1"),
    "a cycle": (each(lambda: Draft((5, 6), (1, 0))), "does not come before it"),
    "too deep": (too_deep, "Draft.depth=24: the sequence has room for 23"),
    "too large": (each(lambda: Draft(tuple(range(65)), (-1,) * 65)), "has room for 64"),
    "NaN": (each(lambda: Draft((5,), (), torch.full((1, 320), torch.nan))), "holds NaN"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_the_request_fails_with_it(make_engine: MakeEngine, kind: str) -> None:
    answer, message = WRONG[kind]
    engine = make_engine()
    engine.swap(proposer=Says(answer))
    outputs = engine.generate(PROMPTS, greedy(25))
    for output in outputs:
        assert output.outputs[0].finish_reason == "error"
        assert len(output.outputs[0].token_ids) == 1  # the prompt's own
    assert message in str(outputs[0].outputs[0].error)
    engine.cache.check()
    engine.swap(proposer="off")
    assert engine.generate(PROMPTS, greedy(3))[0].outputs[0].finish_reason == "length"


def test_only_the_request_with_the_bad_draft_fails(make_engine: MakeEngine, alone: Alone) -> None:
    def one_bad(context: ProposalContext) -> list[Draft | None]:
        return [
            Draft((400,) if c.sequence.request.request_id == "bad" else (3, 4)[: c.max_depth])
            for c in context.candidates
        ]

    engine = make_engine()
    engine.swap(proposer=Says(one_bad))
    for name, prompt in zip(["good", "bad", "fine"], PROMPTS, strict=True):
        engine.add(prompt, greedy(12), request_id=name)
    finished = [s.request.request_id for record in engine.run() for s in record.finished]
    assert sorted(finished) == ["bad", "fine", "good"]
    assert engine.output("bad").outputs[0].finish_reason == "error"
    expected = alone(PROMPTS, greedy(12))
    assert engine.output("good").outputs[0].token_ids == expected[0]
    assert engine.output("fine").outputs[0].token_ids == expected[2]


@pytest.mark.parametrize("kind", ["raises", "out of range", "too few"])
def test_plain_decoding_only_where_it_was_asked_for(
    make_engine: MakeEngine, alone: Alone, kind: str
) -> None:
    engine = make_engine()
    config = SpeculationConfig(on_proposer_error="plain")
    engine.swap(proposer=Says(WRONG[kind][0]), speculation=config)
    with pytest.warns(UserWarning, match="goes on without drafts"):
        outputs = engine.generate(PROMPTS, greedy(12))
    assert [o.outputs[0].token_ids for o in outputs] == alone(PROMPTS, greedy(12))
    assert all(WRONG[kind][1] in o.metrics.proposer_error for o in outputs[:1])
    assert all(o.metrics.proposer_error for o in outputs)


def test_an_interrupt_in_a_proposer_is_the_user_s(make_engine: MakeEngine, alone: Alone) -> None:
    asked = []

    def interrupted(context: ProposalContext) -> list[None]:
        asked.append(context)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [None] * len(context.candidates)

    engine = make_engine()
    engine.swap(proposer=Says(interrupted))
    name = engine.add(PROMPTS[0], greedy(8))
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    engine.run()
    assert engine.forget(name).outputs[0].token_ids == alone(PROMPTS[:1], greedy(8))[0]


def test_a_proposer_changes_nothing_in_the_middle_of_a_step(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.swap(proposer=Says(lambda _: engine.abort("x")))
    engine.add(PROMPTS[0], greedy(8), request_id="x")
    engine.run()
    assert "refused during proposing" in str(engine.output("x").outputs[0].error)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NGram(0), "NGram.max_draft"),
        (lambda: NGram(min_n=3, max_n=2), "NGram.min_n"),
        (lambda: SuffixAutomaton(factor=0.0), "out of range"),
        (lambda: SuffixAutomaton(pool=-1), "SuffixAutomaton.pool"),
        (lambda: DraftModel("tinypy", 0), "DraftModel.max_draft"),
        (lambda: EarlyExit(0), "EarlyExit.num_layers"),
        (lambda: SpeculationConfig(rule="best"), "no such choice"),
        (lambda: SpeculationConfig(rule=7), "is no rule"),
        (lambda: SpeculationConfig(max_slowdown=2), "from 0 to 1"),
        (lambda: SpeculationConfig(lengths=((1,),)), "is no schedule"),
        (lambda: SpeculationConfig(on_proposer_error="ignore"), "no such choice"),
        (lambda: SpeculationConfig(max_dept=3), "Did you mean `max_depth`"),
    ],
)
def test_settings_that_mean_nothing(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_is_no_proposer_or_does_not_fit(
    make_engine: MakeEngine, model_of: Callable[..., Any]
) -> None:
    engine = make_engine()
    before = engine.speculator.proposer
    for wrong, message in [
        (object(), "has no `propose`"),
        (EarlyExit(2), "Take fewer"),
        ("ngrams", "Or one of ngram, suffix"),
    ]:
        with pytest.raises(ConfigError, match=message):
            engine.swap(proposer=wrong)
    needy = NGram()
    needy.needs = ("layers.7",)
    with pytest.raises(ConfigError, match="no point of the model"):
        engine.swap(proposer=needy)
    with pytest.raises(ConfigError, match="is no SpeculationConfig"):
        engine.swap(speculation=3)
    assert engine.speculator.proposer is before


def test_a_draft_model_of_other_tokens_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(ConfigError, match="4096, the target's 320"):
        make_engine().swap(proposer=DraftModel("tinypy"))


def test_a_draft_model_of_another_tokenizer_is_refused(make_engine: MakeEngine) -> None:
    """As many tokens, but two of them change places."""
    engine = make_engine()
    ids = engine.tokenizer.hf.get_vocab()
    first, second, *_ = ids
    swapped = {**ids, first: ids[second], second: ids[first]}
    draft = copy.copy(engine.model)
    draft.tokenizer = SimpleNamespace(hf=SimpleNamespace(get_vocab=lambda: swapped))
    lowest = min(ids[first], ids[second])
    with pytest.raises(ConfigError, match=f"has another tokenizer: token {lowest} is another"):
        engine.swap(proposer=DraftModel(draft))
    assert engine.speculator.proposer is None


def test_lossy_rules_are_labelled(make_engine: MakeEngine) -> None:
    for config in (
        SpeculationConfig(synthetic_acceptance=0.7),
        SpeculationConfig(rule="typical"),
        SpeculationConfig(rule=all_rules.Relaxed(5, 2.0)),
    ):
        engine = make_engine()
        engine.swap(proposer=RandomTrees(3, vocab=40), speculation=config)
        [output] = engine.generate(PROMPTS[:1], greedy(30, temperature=1.5))
        assert output.metrics.lossy == config.make_rule().name
        assert engine.describe()["lossy"] is True
    [output] = make_engine().generate(PROMPTS[:1], greedy(5))
    assert output.metrics.lossy == ""


def test_synthetic_acceptance_is_the_rate_that_was_asked_for(make_engine: MakeEngine) -> None:
    engine = make_engine()
    config = SpeculationConfig(synthetic_acceptance=0.7)
    engine.swap(
        proposer=Says(lambda c: [Draft((1, 2, 3)[: x.max_depth]) for x in c.candidates]),
        speculation=config,
    )
    outputs = engine.generate(PROMPTS, greedy(150))
    drafts = sum(o.metrics.num_drafts for o in outputs)
    length = 1 + sum(o.metrics.num_accepted for o in outputs) / drafts
    assert length == pytest.approx((1 - 0.7**4) / 0.3, abs=0.3)  # (1 - a^(g + 1)) / (1 - a)


def test_from_the_familiar_face() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = SpeculationConfig(max_depth=3)
        with LLM("tinypy", num_blocks=64, proposer=NGram(), speculation=config) as llm:
            assert llm.describe()["proposer"] == "ngram"
            assert llm.engine.speculator.config is config
        assert EngineConfig().proposer is None
