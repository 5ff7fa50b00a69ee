"""The proposers that ship: greedy and drawn tokens stay what they are, whatever else goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from drafting import Says, drawn_chain
from drive import Alone, MakeEngine, drawn, greedy, tokens_of
from tiny import VOCAB, random_prompts

from workbench.models import DecoderLM
from workbench.sampling_params import SamplingParams
from workbench.speculation import (
    Draft,
    DraftModel,
    EarlyExit,
    NGram,
    ProposalContext,
    SpeculationConfig,
    SuffixAutomaton,
)
from workbench.speculation.ngram import _Index
from workbench.speculation.suffix import _Automaton

PROMPTS = [*random_prompts(4, seed=5, longest=30), [5, 6, 7] * 6, [5, 6, 7] * 6 + [9]]
MENU = [greedy(20), drawn(3, 20), greedy(14), drawn(4, 20, top_k=9), greedy(20), drawn(5, 20)]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunks": {"max_batch_tokens": 12, "max_sequences": 4},
    "preemption": {"num_blocks": 30, "block_size": 4},
    "swapping": {"num_blocks": 30, "block_size": 4, "preemption": "swap", "host_blocks": 60},
    "no reuse": {"prefix_reuse": False, "block_size": 3},
}
PROPOSERS: dict[str, Callable[[DecoderLM], Any]] = {
    "ngram": lambda _: NGram(5, max_n=3),
    "suffix": lambda _: SuffixAutomaton(),
    "suffix pool": lambda _: SuffixAutomaton(pool=3),
    "draft model": lambda model: DraftModel(model, 3, backend="sdpa"),
    "early exit": lambda _: EarlyExit(1, 3),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", PROPOSERS)
def test_tokens_are_those_of_plain_decoding(
    make_engine: MakeEngine, alone: Alone, kind: str, setting: str
) -> None:
    engine = make_engine(**SETTINGS[setting])
    engine.swap(proposer=PROPOSERS[kind](engine.model))
    for _ in range(2):
        assert tokens_of(engine, PROMPTS, MENU) == alone(PROMPTS, MENU)


def test_a_draft_model_that_is_the_target_is_always_right(make_engine: MakeEngine) -> None:
    """So the last guess and the bonus are caught up: the classic off-by-one would lower this."""
    engine = make_engine()
    engine.swap(proposer=DraftModel(engine.model, 4, backend="sdpa"))
    for output in engine.generate(PROMPTS, greedy(21)):
        assert output.metrics.accepted_at == (4, 4, 4, 4)
        assert output.metrics.acceptance_length == 5.0


def test_q_that_equals_p_is_accepted_whole(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.swap(proposer=DraftModel(engine.model, 4, sampled=True, backend="sdpa"))
    for output in engine.generate(PROMPTS, drawn(3, 21)):
        assert output.metrics.acceptance_length == 5.0


def test_ngrams_take_the_longest_and_latest_match() -> None:
    index = _Index(1, 2)
    text = [1, 2, 3, 4, 9, 2, 5, 6, 1, 2]
    assert index.find(text) == 2  # after the earlier 1 2, not after the later 2
    assert index.find([*text, 7]) is None
    assert index.find([*text, 7, 2]) == len(text)  # 7 2 is new: after the latest 2
    assert index.find([4, 4, 4]) == 2  # it may overlap
    assert index.find([3]) is None


def test_the_suffix_automaton_proposes_what_mostly_followed() -> None:
    automaton = _Automaton()
    text = [1, 2, 3, 9, 1, 2, 4, 9, 1, 2, 4, 9, 1, 2]
    automaton.follow(text)
    length, state = automaton.last_match()
    assert length == 7  # 9 1 2 4 9 1 2
    assert automaton.walk(state, 3, 0.0)[0][:2] == [4, 9]
    for n in range(1, len(text)):  # it is the automaton of every prefix, however it was fed
        grown = _Automaton()
        grown.follow(text[:n])
        grown.follow(text)
        assert (grown.last_match()[0], grown._longest) == (length, automaton._longest)


@pytest.mark.parametrize("seed", range(20))
def test_the_suffix_automaton_finds_the_longest_repeated_suffix(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, 3, (40,), generator=generator).tolist()
    for n in range(1, len(text)):
        automaton, part = _Automaton(), text[:n]
        automaton.follow(part)
        lengths = [k for k in range(1, n) if _occurs(part[n - k :], part[: n - 1])]
        assert automaton.last_match()[0] == max(lengths, default=0)
        other = _Automaton()
        other.add(text[20:])
        found = [k for k in range(1, n + 1) if _occurs(part[n - k :], text[20:])]
        assert other.match(part)[0] == max(found, default=0)


def _occurs(needle: list[int], text: list[int]) -> bool:
    return any(text[i : i + len(needle)] == needle for i in range(len(text) - len(needle) + 1))


def test_a_pool_stays_within_its_namespace(make_engine: MakeEngine) -> None:
    engine = make_engine()
    proposer = SuffixAutomaton(pool=4)
    engine.swap(proposer=proposer)
    for namespace in ("a", "b", "a"):
        engine.add(PROMPTS[4], greedy(6), namespace=namespace)
        engine.run()
    engine.add([1, 2, 3], greedy(6))
    engine.run()
    assert {name: len(texts) for name, texts in proposer._pools.items()} == {"a": 2, "b": 1}
    for name in list(engine.requests):
        engine.forget(name)


def test_drawn_tokens_keep_their_law_through_the_engine(make_engine: MakeEngine) -> None:
    """Chi-square of the first two tokens, drafts drawn from a wrong distribution."""
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))

    def q(tokens: list[int]) -> torch.Tensor:
        return torch.softmax(logits.roll(len(tokens)), 0)

    many, prompt = 1500, [3, 4, 5]
    counts = []
    for proposer in (
        "off",
        Says(lambda context: [drawn_chain(c, q, 3) for c in context.candidates]),
    ):
        engine = make_engine(num_blocks=1200, block_size=4, max_sequences=250)
        engine.swap(proposer=proposer, speculation=SpeculationConfig())
        params = [
            SamplingParams(max_tokens=4, seed=i, top_k=4, temperature=1.5, ignore_eos=True)
            for i in range(many)
        ]
        outputs = engine.generate([prompt] * many, params)
        accepted = sum(o.metrics.num_accepted for o in outputs)
        assert proposer == "off" or accepted > 0
        seen: dict[tuple[int, ...], int] = {}
        for output in outputs:
            key = tuple(output.outputs[0].token_ids[:3])
            seen[key] = seen.get(key, 0) + 1
        counts.append(seen)
    plain, drafted = counts
    cells = [key for key in {*plain, *drafted} if plain.get(key, 0) + drafted.get(key, 0) >= 20]
    # Two samples of equal size: sum (a - b)^2 / (a + b) is chi-square of that many cells.
    statistic = sum(
        (plain.get(k, 0) - drafted.get(k, 0)) ** 2 / (plain.get(k, 0) + drafted.get(k, 0))
        for k in cells
    )
    assert len(cells) > 8
    assert statistic < len(cells) + 5 * (2 * len(cells)) ** 0.5


def test_drawn_drafts_at_no_temperature_and_in_another_order(
    make_engine: MakeEngine, alone: Alone
) -> None:
    """As it goes to 0, rejection takes what is likeliest; and who is beside whom changes nothing,
    penalties, filters and bias included."""
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))

    def q(tokens: list[int]) -> torch.Tensor:
        return torch.softmax(logits.roll(len(tokens)), 0)

    def generate(order: list[int], params: list[SamplingParams]) -> dict[int, list[int]]:
        engine = make_engine()
        engine.swap(proposer=Says(lambda c: [drawn_chain(one, q, 3) for one in c.candidates]))
        outputs = engine.generate([PROMPTS[i] for i in order], [params[i] for i in order])
        drafted = sum(output.metrics.num_draft_tokens for output in outputs)
        assert drafted > 50
        pairs = zip(order, outputs, strict=True)
        return {i: list(output.outputs[0].token_ids) for i, output in pairs}

    order = list(range(len(PROMPTS)))
    cold = generate(order, [drawn(i, 9, temperature=1e-6) for i in order])
    assert [cold[i] for i in order] == alone(PROMPTS, greedy(9))
    menu = [
        drawn(1, 9, top_p=0.9, presence_penalty=1.0),
        drawn(2, 9, min_p=0.05, logit_bias={7: 4.0}),
        drawn(3, 9, repetition_penalty=1.3, bad_words=[[9, 8], [6]]),
        drawn(4, 9, top_k=30, frequency_penalty=0.5),
        drawn(5, 9),
        drawn(6, 9, no_repeat_ngram_size=2),
    ]
    assert generate(order, menu) == generate([3, 0, 5, 1, 4, 2], menu)


def test_states_come_for_every_committed_token_once(make_engine: MakeEngine, alone: Alone) -> None:
    """A proposer gets the rows it needs, of accepted tokens alone, equal to a fresh pass's."""

    class Collects:
        name, needs = "collects", ("", "layers.0")

        def __init__(self, truth: list[int]) -> None:
            self.truth, self.seen = truth, {"": [], "layers.0": []}

        def propose(self, context: ProposalContext) -> list[Draft | None]:
            [candidate] = context.candidates
            states = candidate.states
            assert states is not None
            assert states.stop == candidate.sequence.num_computed
            assert states.start == sum(map(len, self.seen[""]))
            for point, rows in states.rows.items():
                self.seen[point].append(rows)
            here = len(candidate.token_ids)
            good, wrong = self.truth[here : here + 2], (self.truth[here] + 1) % VOCAB
            tree = Draft((wrong, *good), (-1, -1, 1)[: len(good) + 1])
            return [tree if tree.depth <= candidate.max_depth else None]

    prompt = PROMPTS[0] if len(PROMPTS[0]) > 1 else PROMPTS[1]
    [output] = alone([prompt], greedy(12))
    engine = make_engine(max_batch_tokens=8, max_sequences=2)
    proposer = Collects([*prompt, *output, 0, 0])
    engine.swap(proposer=proposer)
    [result] = engine.generate([prompt], greedy(12))
    assert result.outputs[0].token_ids == output
    assert result.metrics.num_accepted > 4
    fresh = make_engine()
    asked = SamplingParams(
        max_tokens=1, temperature=0, hidden_states=True, activations=["layers.0"]
    )
    [whole] = fresh.generate([[*prompt, *output]], asked)
    for point, parts in proposer.seen.items():
        rows = torch.cat(parts)
        expected = whole.outputs[0].hidden_states
        if point:
            expected = whole.outputs[0].activations[point]
        assert expected is not None
        torch.testing.assert_close(rows, expected[: len(rows)], rtol=1e-3, atol=1e-4)
