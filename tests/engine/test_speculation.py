"""Speculation changes how fast tokens come, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from drafting import RandomTrees, Right, truth_of
from drive import Alone, MakeEngine, drawn, greedy, tokens_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import random_prompts

from workbench.engine import Engine
from workbench.events import DraftVerified, Event
from workbench.models import DecoderLM, load_model
from workbench.sampling_params import SamplingParams
from workbench.speculation import Lookahead, NGram, SpeculationConfig


@pytest.fixture(scope="module")
def bf16_model(checkpoint: Callable[[str], Path]) -> DecoderLM:
    """The small model in bfloat16."""
    return load_model(checkpoint("llama"), device="cpu", dtype="bfloat16")


PROMPTS = [*random_prompts(5, seed=5), [5, 6, 7] * 6, [5, 6, 7] * 6 + [9]]
# What the engine does meanwhile; all of it at once in the last.
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunks": {"max_batch_tokens": 12, "max_sequences": 4},
    "preemption": {"num_blocks": 30, "block_size": 4},
    "swapping": {"num_blocks": 30, "block_size": 4, "preemption": "swap", "host_blocks": 60},
    "no eviction": {"num_blocks": 40, "block_size": 4, "capacity": "guaranteed_no_evict"},
    "blocks of 1": {"num_blocks": 700, "block_size": 1},
    "no reuse": {"prefix_reuse": False},
    "all": {"num_blocks": 34, "block_size": 3, "max_batch_tokens": 14, "max_sequences": 5},
}
MENU = [
    greedy(24),
    drawn(3, 24),
    drawn(4, 20, top_k=20, top_p=0.8, repetition_penalty=1.4),
    greedy(24, presence_penalty=1.5, no_repeat_ngram_size=3),
    drawn(5, 12, min_tokens=5, logit_bias={7: 3.0}, bad_words=[[9, 8], [6]]),
    greedy(17, logits_processors=[lambda ids, logits: logits.roll(len(ids) % 3)]),
    greedy(9),
]


def proposer_for(kind: str, alone: Alone, **settings: Any) -> Any:
    if kind == "ngram":
        return NGram(4, max_n=2)
    if kind == "lookahead":
        return Lookahead(4, n=3, guesses=3)
    outputs = alone(PROMPTS, MENU, **settings)
    return RandomTrees(1, truth=truth_of(PROMPTS, outputs), chain=kind == "chains")


@pytest.mark.parametrize("kind", ["ngram", "trees", "lookahead"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_tokens_are_those_of_plain_decoding(
    make_engine: MakeEngine, alone: Alone, kind: str, setting: str
) -> None:
    engine = make_engine(**SETTINGS[setting])
    engine.swap(proposer=proposer_for(kind, alone))
    assert tokens_of(engine, PROMPTS, MENU) == alone(PROMPTS, MENU)
    if "preempt" in setting or setting == "all":
        names = [engine.add(prompt, greedy(40)) for prompt in PROMPTS]
        engine.run()
        assert sum(engine.forget(name).metrics.num_preemptions for name in names)


@pytest.mark.parametrize("kind", ["ngram", "trees"])
def test_on_every_backend(
    make_engine: MakeEngine, alone: Alone, backend: str, device: str, kind: str
) -> None:
    engine = make_engine(device=device, backend=backend, block_size=4, num_blocks=200)
    engine.swap(proposer=proposer_for(kind, alone, device=device))
    outputs = engine.generate(PROMPTS, MENU)
    expected = alone(PROMPTS, MENU, device=device)
    assert [o.outputs[0].token_ids for o in outputs] == expected
    assert sum(o.metrics.num_accepted for o in outputs) > (20 if kind == "trees" else 0)


@pytest.mark.parametrize("family", ["mistral", "qwen2-windows"])
def test_chains_under_windows(make_engine: MakeEngine, alone: Alone, family: str) -> None:
    engine = make_engine(family, block_size=2, num_blocks=200)
    engine.swap(proposer=proposer_for("chains", alone, model=family))
    outputs = engine.generate(PROMPTS, MENU)
    assert [o.outputs[0].token_ids for o in outputs] == alone(PROMPTS, MENU, model=family)
    assert sum(o.metrics.num_accepted for o in outputs) > 5


def test_a_tree_under_windows_is_refused_by_name(make_engine: MakeEngine) -> None:
    engine = make_engine("mistral")
    engine.swap(proposer=RandomTrees(2, largest=9))
    [output] = engine.generate([[1, 2, 3]], greedy(30))
    assert output.outputs[0].finish_reason == "error"
    assert "layers with a window verify chains alone" in str(output.outputs[0].error)


def test_prefix_reuse_finds_accepted_tokens_and_no_others(
    make_engine: MakeEngine, alone: Alone
) -> None:
    """What one request left in the cache serves the next, drafted or not."""
    engine = make_engine(block_size=2, num_blocks=300)
    engine.swap(proposer=proposer_for("trees", alone))
    tokens_of(engine, PROMPTS, MENU)
    expected = alone(PROMPTS, greedy(24))
    longer = [p + e[:16] for p, e in zip(PROMPTS, expected, strict=True)]
    outputs = engine.generate(longer, greedy(8))
    assert [o.outputs[0].token_ids for o in outputs] == [e[16:] for e in expected]
    assert sum(o.metrics.num_cached_tokens for o in outputs) > 20


def kv_of(engine: Engine, sequence_id: int, num_tokens: int) -> torch.Tensor:
    """Return the KV of a sequence's first tokens, [layers, 2, tokens, K, D]."""
    table = engine.cache.blocks.tables[sequence_id]
    size = engine.cache.block_size
    slots = [table.slot(position, size, 0) for position in range(num_tokens)]
    return engine.cache.tensor.flatten(2, 3)[:, :, slots].clone()


@pytest.mark.parametrize("backend", ["reference", "sdpa", "native"])
def test_kv_after_each_commit_is_that_of_a_fresh_prefill(
    make_engine: MakeEngine, alone: Alone, backend: str
) -> None:
    prompts, params = PROMPTS[:3], greedy(24)
    truth = truth_of(prompts, alone(prompts, params))
    engine = make_engine(block_size=4, backend=backend)
    engine.swap(proposer=RandomTrees(3, truth=truth))
    names = [engine.add(prompt, params) for prompt in prompts]
    fresh = make_engine(block_size=4, prefix_reuse=False, backend=backend)
    compared = 0
    while engine.has_work:
        record = engine.step()
        engine.cache.check()
        for row in record.plan.drafts:
            sequence = record.plan.sequences[row]
            if sequence.finished:
                continue
            found = kv_of(engine, sequence.sequence_id, sequence.num_computed)
            name = fresh.add(sequence.token_ids[: sequence.num_computed], greedy(2))
            fresh.step()
            number = fresh.requests[name].sequences[0].sequence_id
            expected = kv_of(fresh, number, sequence.num_computed)
            fresh.abort(name)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            table = engine.cache.blocks.tables[sequence.sequence_id]
            assert table.stop == engine.cache.blocks.blocks_for(sequence.num_computed)
            compared += 1
    assert compared > 10
    assert all(engine.output(name).finished for name in names)


def test_what_is_rejected_never_leaks(make_engine: MakeEngine, alone: Alone) -> None:
    """Every slot that no committed token holds is poisoned between two steps."""
    params = [greedy(24), drawn(3, 24)] * 3
    prompts = PROMPTS[:6]
    truth = truth_of(prompts, alone(prompts, params))
    engine = make_engine(block_size=4)
    engine.swap(proposer=RandomTrees(4, truth=truth))
    names = [engine.add(*pair) for pair in zip(prompts, params, strict=True)]
    while engine.has_work:
        engine.step()
        for number, table in engine.cache.blocks.tables.items():
            [sequence] = [s for s in engine.scheduler.running if s.sequence_id == number]
            for position in range(sequence.num_computed, table.stop * 4):
                slot = table.slot(position, 4, 0)
                engine.cache.tensor.flatten(2, 3)[:, :, slot] = torch.nan
    assert [engine.forget(n).outputs[0].token_ids for n in names] == alone(prompts, params)


def test_ends_inside_an_accepted_run(make_engine: MakeEngine, alone: Alone) -> None:
    """Stop tokens, stop strings, lengths: each at every place of a run."""
    prompt = PROMPTS[1]
    [whole] = alone([prompt], greedy(24))
    truth = truth_of([prompt], [whole])
    plain, engine = make_engine(), make_engine()
    engine.swap(proposer=Right(truth, 7))
    for place in range(1, 24):
        menu = [
            greedy(place, logprobs=1),
            greedy(24, stop_token_ids=(whole[place],)),
            greedy(24, stop_token_ids=(whole[place],), min_tokens=place),
            greedy(24, stop=plain.tokenizer.decode(whole[place : place + 2])),
        ]
        for params in menu:
            [a], [b] = plain.generate([prompt], params), engine.generate([prompt], params)
            assert a.outputs[0].token_ids == b.outputs[0].token_ids
            assert a.outputs[0].text == b.outputs[0].text
            assert a.outputs[0].finish_reason == b.outputs[0].finish_reason
            assert a.outputs[0].stop_reason == b.outputs[0].stop_reason
            assert len(b.outputs[0].logprobs or ()) == len(a.outputs[0].logprobs or ())


def test_log_probabilities_of_accepted_tokens(make_engine: MakeEngine, alone: Alone) -> None:
    params = [greedy(24, logprobs=3), drawn(3, 24, logprobs=0)]
    prompts = PROMPTS[:2]
    expected = make_engine().generate(prompts, params)
    engine = make_engine()
    engine.swap(proposer=RandomTrees(5, truth=truth_of(prompts, alone(prompts, params))))
    for a, b in zip(expected, engine.generate(prompts, params), strict=True):
        assert b.metrics.num_accepted > 3
        for x, y in zip(a.outputs[0].logprobs or (), b.outputs[0].logprobs or (), strict=True):
            assert x.token_id == y.token_id
            assert x.logprob == pytest.approx(y.logprob, abs=1e-4)
            assert [t for t, _ in x.top] == [t for t, _ in y.top]


def test_streams_are_cut_nowhere(make_engine: MakeEngine, alone: Alone) -> None:
    prompt = PROMPTS[5]
    truth = truth_of([prompt], alone([prompt], greedy(24)))
    engine = make_engine()
    engine.swap(proposer=Right(truth, 5))
    request = engine.add(prompt, greedy(24))
    seen = [output.outputs[0] for output in engine.stream(request)]
    assert len(seen) < 10
    for before, after in pairwise(seen):
        assert after.text.startswith(before.text)
        assert after.token_ids[: len(before.token_ids)] == before.token_ids


@pytest.mark.parametrize("kind", ["ngram", "trees", "lookahead"])
@pytest.mark.parametrize("backend", ["sdpa", "native"])
def test_in_bfloat16_tokens_part_only_at_near_ties(
    make_engine: MakeEngine, bf16_model: DecoderLM, backend: str, kind: str
) -> None:
    """Where they do, the likeliest two tokens are within rounding of each other."""
    plain = make_engine(bf16_model, backend=backend)
    expected = plain.generate(PROMPTS, greedy(40, logprobs=2))
    tokens = [output.outputs[0].token_ids for output in expected]
    proposer = RandomTrees(3, truth=truth_of(PROMPTS, tokens))
    made = {"ngram": NGram(4, max_n=2), "trees": proposer, "lookahead": Lookahead(4, n=3)}
    engine = make_engine(bf16_model, backend=backend)
    engine.swap(proposer=made[kind])
    accepted = 0
    for before, after in zip(expected, engine.generate(PROMPTS, greedy(40)), strict=True):
        accepted += after.metrics.num_accepted
        pairs = zip(before.outputs[0].token_ids, after.outputs[0].token_ids, strict=True)
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if first is not None:
            (_, best), (_, second) = (before.outputs[0].logprobs or [])[first].top
            assert best - second < 0.05, f"parts at {first}, by {best - second:.3f}"
    assert accepted > 5


def test_metrics_and_events_say_the_same(make_engine: MakeEngine, alone: Alone) -> None:
    params = [*MENU[:3], drawn(9, 20, n=2)]
    prompts = PROMPTS[:4]
    truth = truth_of(prompts[:3], alone(prompts[:3], params[:3]))
    engine = make_engine()
    engine.swap(proposer=RandomTrees(6, truth=truth))
    events: list[Event] = []
    engine.bus.subscribe(events.append)
    names = [engine.add(*pair) for pair in zip(prompts, params, strict=True)]
    records = engine.run()
    told = [event for event in events if isinstance(event, DraftVerified)]
    drafted = [(r.step, r.plan.sequences[i], d) for r in records for i, d in r.plan.drafts.items()]
    assert [(e.step, e.sequence_id, e.token_ids, e.parents) for e in told] == [
        (step, s.sequence_id, d.token_ids, d.parents) for step, s, d in drafted
    ]
    for event, (_, _, draft) in zip(told, drafted, strict=True):
        assert list(event.accepted) == draft.path(event.accepted[-1] if event.accepted else -1)
    for name in names:
        output = engine.output(name)
        metrics = output.metrics
        ids = {s.sequence_id for s in engine.requests[name].sequences}
        mine = [event for event in told if event.sequence_id in ids]
        assert metrics.num_drafts == len(mine)
        assert metrics.num_draft_tokens == sum(len(event.token_ids) for event in mine)
        assert metrics.num_accepted <= sum(len(event.accepted) for event in mine)
        assert list(metrics.accepted_at) == sorted(metrics.accepted_at, reverse=True)
        if metrics.num_drafts:
            assert metrics.acceptance_length == 1 + metrics.num_accepted / metrics.num_drafts
        appended = sum(1 for r in records for t in r.tokens if t.request_id == name)
        assert appended == sum(len(o.token_ids) for o in output.outputs)
    assert sum(event.accepted != () for event in told) > 5


def test_a_draft_puts_nobody_off(make_engine: MakeEngine, alone: Alone) -> None:
    """Steps are no more, and no one is preempted, for the sake of guesses that are all wrong."""
    # Without reuse, since a draft's blocks may be evicted ones.
    settings = {"num_blocks": 30, "block_size": 4, "max_batch_tokens": 16, "max_sequences": 8}
    settings["prefix_reuse"] = False
    counts = []
    for proposer in ("off", RandomTrees(7)):
        engine = make_engine(**settings)
        engine.swap(proposer=proposer)
        names = [engine.add(prompt, greedy(16)) for prompt in PROMPTS]
        steps = len(engine.run())
        counts.append((steps, sum(engine.forget(n).metrics.num_preemptions for n in names)))
    assert counts[1][0] <= counts[0][0]
    assert counts[1][1] <= counts[0][1]


@pytest.mark.parametrize("proposer", [None, "ngram", "trees"])
def test_beams_and_embeddings_decode_plainly_beside_drafts(
    make_engine: MakeEngine, alone: Alone, proposer: str | None
) -> None:
    engine = make_engine()
    beams = SamplingParams(beam_width=3, n=2, max_tokens=8, ignore_eos=True)
    if proposer is not None:
        engine.swap(proposer=proposer_for(proposer, alone))
    soft = engine.model.embedding.weight[torch.tensor([3, 4, 5])].detach()
    outputs = engine.generate(
        [PROMPTS[0], [1, 2, soft, 7], PROMPTS[5]],
        [beams, greedy(10), greedy(10, hidden_states=True)],
    )
    assert all(output.metrics.num_drafts == 0 for output in outputs)
    plain = make_engine()
    expected = plain.generate([PROMPTS[0], [1, 2, soft, 7]], [beams, greedy(10)])
    for a, b in zip(outputs, expected, strict=False):
        assert [o.token_ids for o in a.outputs] == [o.token_ids for o in b.outputs]
    if proposer is not None:
        assert "beams" in engine.describe()["decoded plainly"]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10**6),
    block_size=st.integers(1, 9),
    tokens=st.integers(8, 64),
    blocks=st.integers(20, 60),
    largest=st.integers(1, 40),
    swap=st.booleans(),
)
def test_any_trees_under_any_pressure(
    make_engine: MakeEngine,
    alone: Alone,
    seed: int,
    block_size: int,
    tokens: int,
    blocks: int,
    largest: int,
    swap: bool,
) -> None:
    """The adversary: random trees, of any size, in a cache of any size."""
    prompts, params = PROMPTS[:4], MENU[:4]
    longest = max(map(len, prompts)) + 24
    engine = make_engine(
        block_size=block_size,
        num_blocks=max(blocks, -(-longest // block_size)),
        max_batch_tokens=tokens,
        max_sequences=4,
        preemption="swap" if swap else "recompute",
        host_blocks=40 if swap else 0,
    )
    truth = truth_of(prompts, alone(prompts, params))
    engine.swap(proposer=RandomTrees(seed, truth=truth, largest=largest))
    names = [engine.add(*pair) for pair in zip(prompts, params, strict=True)]
    while engine.has_work:
        engine.step()
        engine.cache.check()
    assert [engine.forget(n).outputs[0].token_ids for n in names] == alone(prompts, params)
    engine.close()


def test_lengths_by_load(make_engine: MakeEngine) -> None:
    engine = make_engine()
    config = SpeculationConfig(lengths=((1, 5), (3, 2), (4, 0)))
    engine.swap(proposer=RandomTrees(8, chain=True), speculation=config)
    depths: dict[int, set[int]] = {}
    for count in (1, 2, 3, 4):
        names = [engine.add([i + 1, 2, 3], greedy(20)) for i in range(count)]
        for record in engine.run():
            depths.setdefault(count, set()).update(d.depth for d in record.plan.drafts.values())
        for name in names:
            engine.forget(name)
    assert max(depths[1]) == max(depths[2]) == 5
    assert max(depths[3]) == 2
    assert depths[4] == set()
