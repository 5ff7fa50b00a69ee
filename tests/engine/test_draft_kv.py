"""A draft model in the blocks of its target's cache: what is found there, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from drafted_kv import check_companion, perturbed, poison
from drive import Alone, MakeEngine, greedy, tokens_of

from workbench.build import build
from workbench.config import EngineConfig
from workbench.engine import Engine
from workbench.events import DraftVerified
from workbench.models import DecoderLM
from workbench.run import Runner
from workbench.speculation import Candidate, DraftModel, EarlyExit, SpeculationConfig
from workbench.speculation.follower import Follower

LONG = [7 + 11 * i % 300 for i in range(70)]


@pytest.fixture(scope="module")
def _drafters() -> dict[int, DecoderLM]:
    return {}


@pytest.fixture
def drafter(model_of: Callable[..., DecoderLM], _drafters: dict[int, DecoderLM]) -> DecoderLM:
    """A model that is often right, and not always."""
    target = model_of("llama")
    return _drafters.setdefault(id(target), perturbed(target))


def drafting(engine: Engine, drafter: DecoderLM, length: int = 3) -> DraftModel:
    """Let an engine draft with a model, over memory that nothing was computed in."""
    proposer = DraftModel(drafter, length, backend="native")
    engine.swap(proposer=proposer)
    poison(proposer.kv)
    return proposer


def watched(engine: Engine, proposer: DraftModel) -> tuple[list[Any], list[int]]:
    """Return lists that fill with the drafts that are verified, and with how many tokens each pass
    of the draft model computes."""
    drafts: list[Any] = []
    sizes: list[int] = []

    def note(event: Any) -> None:
        if isinstance(event, DraftVerified):
            drafts.append(event.token_ids)

    run = proposer.runner.run

    def counted(plan: Any) -> Any:
        sizes.append(plan.num_tokens)
        return run(plan)

    engine.bus.subscribe(note)
    proposer.runner.run = counted  # type: ignore[method-assign]
    return drafts, sizes


def test_what_the_target_finds_the_draft_model_finds(
    make_engine: MakeEngine, drafter: DecoderLM, alone: Alone
) -> None:
    """A prompt that was drafted for before is not computed again, nor what was said to it."""
    [expected] = alone([LONG], greedy(20))
    plain = make_engine(block_size=4, prefix_reuse=False)
    wanted, computed = watched(plain, drafting(plain, drafter))
    assert tokens_of(plain, [LONG], greedy(20)) == [expected]
    assert sum(computed) > len(LONG)
    engine = make_engine(block_size=4)
    proposer = drafting(engine, drafter)
    engine.generate([LONG], greedy(20))
    drafts, sizes = watched(engine, proposer)
    assert tokens_of(engine, [LONG], greedy(20)) == [expected]
    assert drafts == wanted, "what lies there is what would be computed"
    assert sum(sizes) <= sum(computed) - 68 + 4, "the prompt's whole blocks were found"
    turn = [*LONG, *expected, 5, 6, 7]
    del drafts[:], sizes[:], wanted[:], computed[:]
    assert tokens_of(engine, [turn], greedy(8)) == tokens_of(plain, [turn], greedy(8))
    assert drafts == wanted
    assert sum(sizes) <= sum(computed) - 80, "so was what it has said"


def test_blocks_that_only_the_target_computed_are_no_hit(
    make_engine: MakeEngine, drafter: DecoderLM, alone: Alone
) -> None:
    engine = make_engine(block_size=4)
    engine.generate([LONG], greedy(4))
    proposer = drafting(engine, drafter)
    _, sizes = watched(engine, proposer)
    assert tokens_of(engine, [LONG], greedy(8)) == alone([LONG], greedy(8))
    assert sizes[0] >= len(LONG), "all of it had to be computed"
    engine.cache.blocks.clear_cached()
    del sizes[:]
    assert tokens_of(engine, [LONG], greedy(8)) == alone([LONG], greedy(8))
    assert sizes[0] >= len(LONG), "a block that was given out anew holds nothing"


def test_a_fork_takes_the_drafted_keys_along(make_engine: MakeEngine, drafter: DecoderLM) -> None:
    """Both go on with the drafts of a run that nobody forked, and compute no more for them."""
    undisturbed = make_engine(block_size=16)
    wanted, _ = watched(undisturbed, drafting(undisturbed, drafter))
    undisturbed.generate([LONG], greedy(24))
    engine = make_engine(block_size=16)
    proposer = drafting(engine, drafter)
    name = engine.add(LONG, greedy(24))
    drafts, sizes = watched(engine, proposer)
    engine.run(4)
    before = len(drafts)
    del sizes[:]
    engine.fork(name)
    engine.run(2)
    assert check_companion(proposer.kv, drafter, engine.scheduler.running) > 2 * len(LONG)
    engine.run()
    assert drafts[before::2] == drafts[before + 1 :: 2] == wanted[before:]
    assert max(sizes) <= 4, "two rows, each with at most what a whole draft leaves"


@pytest.mark.gpu
def test_drafts_of_graphs_are_those_of_eager_passes(
    make_engine: MakeEngine, model_of: Callable[..., DecoderLM]
) -> None:
    """The same kernels on the same tokens, but for those of passes over more than a token a row."""
    found, drafter = [], perturbed(model_of("llama", "cuda"))
    for graphs in ("auto", False):
        engine = make_engine(device="cuda", backend="triton")
        proposer = DraftModel(drafter, 4, backend="triton")
        engine.swap(proposer=proposer)
        poison(proposer.kv)
        proposer.runner.close()
        proposer.runner = Runner(drafter, proposer.kv, "triton", graphs)
        drafts, _ = watched(engine, proposer)
        prompts, params = [LONG, LONG[:9], LONG[20:41]], [greedy(30), greedy(17), greedy(25)]
        outputs = engine.generate(prompts, params)
        found.append((drafts, [o.outputs[0].token_ids for o in outputs]))
        assert sum(output.metrics.num_accepted for output in outputs) > 0
        if proposer.runner.graphs is not None:
            assert sum(proposer.runner.graphs.eager.values()) <= 3, "prompts, while they are seldom"
            assert proposer.runner.graphs.replays > 20
    assert found[0] == found[1]


def test_drafts_are_those_of_passes_that_are_not_replayed(
    make_engine: MakeEngine, drafter: DecoderLM
) -> None:
    """The oracle: an eager runner. Replayed are all passes but those over prompts."""
    prompts, found = [LONG, LONG[:9], LONG[20:41]], []
    for tape in ("auto", False):
        engine = make_engine(backend="native")
        proposer = drafting(engine, drafter, 4)
        proposer.runner.close()
        proposer.runner = Runner(drafter, proposer.kv, "native", tape=tape)
        drafts, sizes = watched(engine, proposer)
        outputs = engine.generate(prompts, [greedy(30), greedy(17), greedy(25)])
        found.append((drafts, sizes, [o.outputs[0].token_ids for o in outputs]))
        accepted = sum(output.metrics.num_accepted for output in outputs)
        assert 0 < accepted < sum(output.metrics.num_draft_tokens for output in outputs)
        if proposer.runner.tapes is not None:
            assert sum(proposer.runner.tapes.eager.values()) == 1, "the prompts, together"
            assert proposer.runner.tapes.replays >= len(sizes) - 3
    assert found[0] == found[1]


@pytest.mark.parametrize("capacity", ["max_utilization", "guaranteed_no_evict"])
def test_room_for_guesses_keeps_nobody_waiting(
    make_engine: MakeEngine, drafter: DecoderLM, capacity: str
) -> None:
    """Whoever comes is started, and goes on, when it would be without drafts."""
    seen = []
    for drafts in (False, True):
        engine = make_engine(block_size=4, num_blocks=4, capacity=capacity, prefix_reuse=False)
        if drafts:
            drafting(engine, perturbed(drafter, 5.0), 6)  # as good as never right
        # The first one's second block is lent to it while the other lacks its third.
        engine.add(LONG[:1], greedy(11))
        engine.add(LONG[:7], greedy(3))
        engine.run(2)
        waiting = [len(engine.scheduler.waiting)]
        engine.run()
        preempted = [r.metrics.num_preemptions for r in engine.requests.values()]
        engine.add(LONG[:3], greedy(9))
        engine.run(1)
        engine.add(LONG[:12], greedy(1))  # lacks a block that is lent
        engine.step()
        waiting.append(len(engine.scheduler.waiting))
        engine.run()
        seen.append((waiting, preempted))
    assert seen[0] == seen[1]
    assert seen[0] == (([0, 0] if capacity == "max_utilization" else [1, 1]), [0, 0])


def test_lent_blocks_are_drafted_into(make_engine: MakeEngine, drafter: DecoderLM) -> None:
    """Where blocks are free a draft is whole, wherever in a block it begins; where none is, it is
    what the last one has room for."""
    engine = make_engine(block_size=4)
    drafts, _ = watched(engine, drafting(engine, drafter, 3))
    engine.generate([LONG[:3]], greedy(20))
    assert {len(draft) for draft in drafts[:-2]} == {3}
    tight = make_engine(block_size=4, num_blocks=6)
    drafts, _ = watched(tight, drafting(tight, drafter, 3))
    first, second = tight.add(LONG[:9], greedy(4)), tight.add(LONG[1:10], greedy(4))
    tight.run()
    assert tight.output(first).finished
    assert tight.output(second).finished
    assert all(0 < len(draft) <= 3 for draft in drafts)


def test_what_was_known_of_lost_blocks_is_not_known_of_new_ones(
    make_engine: MakeEngine, drafter: DecoderLM, alone: Alone
) -> None:
    engine = make_engine(block_size=4, prefix_reuse=False)
    proposer = drafting(engine, drafter)
    _, sizes = watched(engine, proposer)
    name = engine.add(LONG, greedy(24))
    engine.run(4)
    engine.pause(name, release=True)
    engine.generate([LONG[5:40]], greedy(1))  # takes its blocks, undrafted
    engine.resume(name)
    del sizes[:]
    engine.run(3)
    assert sizes[0] >= len(LONG), "all was computed again"
    assert check_companion(proposer.kv, drafter, engine.scheduler.running) > len(LONG)
    engine.run()
    assert [engine.output(name).outputs[0].token_ids] == alone([LONG], greedy(24))


def test_drafts_of_several_lengths_keep_to_their_rows(make_engine: MakeEngine) -> None:
    """Near the end they are shorter; a model that is the target is right all the same."""
    engine = make_engine(backend="native")
    drafting(engine, engine.model, 4)
    params = [greedy(count) for count in (7, 20, 9, 13)]
    for output in engine.generate([LONG[i : i + 9] for i in range(4)], params):
        assert output.metrics.num_accepted == output.metrics.num_draft_tokens > 0


def test_guesses_are_written_where_nobody_else_looks(
    make_engine: MakeEngine, drafter: DecoderLM
) -> None:
    engine = make_engine()
    proposer = drafting(engine, drafter)
    name = engine.add(LONG, greedy(9))
    engine.run(3)
    [sequence] = engine.scheduler.running
    table = engine.cache.blocks.tables[sequence.sequence_id]
    kept, candidate = table.writable_to, Candidate(sequence, 4, 4)
    for room in (0, 2):
        table.writable_to = sequence.num_computed + room if room else 0
        follower = Follower(sequence, proposer.kv)
        assert follower.begin(candidate, 3) is bool(room)
        assert follower.length == room
    table.writable_to = kept
    engine.abort(name)


def test_what_rests_on_a_wrong_guess_is_not_taken_for_computed(
    make_engine: MakeEngine, drafter: DecoderLM
) -> None:
    """A later guess may be the right token, but its keys were made behind the wrong one."""
    engine = make_engine(block_size=2)
    kv = drafting(engine, drafter).kv
    name = engine.add([1, 2, 3, 4, 5, 6], greedy(4))
    engine.run(1)
    [table] = engine.cache.blocks.tables.values()
    kv.cut(table, 0)
    kv.note(table, [1, 9, 3, 9], 0, 4)
    tokens = [1, 2, 3, 4, 5, 6]
    assert kv.num_computed(table, tokens) == 1
    kv.cut(table, 1)
    kv.note(table, tokens, 1, 2)
    assert kv.num_computed(table, tokens) == 2
    kv.note(table, tokens, 2, 5)
    assert kv.num_computed(table, tokens) == kv.num_computed(table, tokens, 3) == 5
    assert kv.num_computed(table, tokens[:4]) == 4, "there may be blocks beyond the tokens"
    engine.abort(name)


def test_what_comes_back_from_the_host_is_computed_again(
    make_engine: MakeEngine, drafter: DecoderLM, alone: Alone
) -> None:
    engine = make_engine(block_size=4, num_blocks=24, host_blocks=60)
    proposer = drafting(engine, drafter)
    for prompt in (LONG, LONG[3:], LONG):
        assert tokens_of(engine, [prompt], greedy(9)) == alone([prompt], greedy(9))
    assert engine.cache.stats().restores > 0
    proposer.kv.check()


def test_a_cache_of_another_size_begins_anew(
    model_of: Callable[..., DecoderLM], drafter: DecoderLM, alone: Alone
) -> None:
    config = EngineConfig(num_blocks=60, block_size=4, lora_rows=8, prefix_reuse=False)
    with build(config, model=model_of("llama")) as engine:
        proposer = drafting(engine, drafter)
        name = engine.add(LONG, greedy(30))
        for rows in (6, 9, 8):
            engine.run(3)
            assert check_companion(proposer.kv, drafter, engine.scheduler.running) > len(LONG)
            engine.rebalance(lora_rows=rows)
            assert proposer.kv.tensors[0].shape[2] == engine.cache.num_blocks
            poison(proposer.kv)
            assert not check_companion(proposer.kv, drafter, engine.scheduler.running)
        assert engine.cache.num_blocks == 60
        engine.run()
        assert [engine.output(name).outputs[0].token_ids] == alone([LONG], greedy(30))
        assert engine.output(name).metrics.num_accepted > 0


def test_a_draft_model_comes_and_goes(make_engine: MakeEngine, drafter: DecoderLM) -> None:
    engine = make_engine()
    proposer = drafting(engine, drafter)
    shape = proposer.kv.tensors[0].shape
    assert engine.cache.companions == [proposer.kv]
    assert shape[2:4] == engine.cache.tensors[0].shape[2:4]
    assert f"{shape[2]} blocks of {shape[3]}" in repr(proposer.kv)
    engine.generate([LONG], greedy(5))
    assert "tokens, " in repr(proposer.kv)
    assert "beside it=" in repr(engine.cache)
    assert f"keys={proposer.kv.describe()['memory']}" in repr(proposer)
    engine.swap(proposer=EarlyExit(1))
    assert len(engine.cache.companions) == 1
    assert proposer.model is None
    assert proposer.kv.num_bytes == 0
    engine.swap(proposer="off")
    assert engine.cache.companions == []
    last = drafting(engine, drafter)
    engine.close()
    assert last.kv.num_bytes == 0


def test_drawn_drafts_need_no_seed_of_their_own(
    make_engine: MakeEngine, drafter: DecoderLM
) -> None:
    """The same draws come again where the draft model finds what it had computed."""
    engine = make_engine(block_size=4)
    proposer = DraftModel(drafter, 3, sampled=True, backend="native")
    engine.swap(proposer=proposer)
    poison(proposer.kv)
    params = greedy(20, temperature=1.1, seed=4)
    first, again = (tokens_of(engine, [LONG], params) for _ in range(2))
    assert first == again


def test_a_step_that_recorded_the_draft_models_passes_is_no_measure(
    make_engine: MakeEngine, drafter: DecoderLM
) -> None:
    """Else the controller would hold the first drafts, and others of new sizes, for slow ones."""
    engine = make_engine(backend="reference")
    proposer = drafting(engine, drafter)
    engine.swap(speculation=SpeculationConfig(adaptive=True))
    control, unmeasured = engine.speculator.control, []
    note = control.unmeasured
    control.unmeasured = lambda count: (unmeasured.append(count), note(count))[1]  # type: ignore
    engine.generate([LONG], greedy(60))
    assert proposer.preparations > 0
    assert unmeasured == [1] * proposer.preparations
    engine.swap(proposer="off")
    assert proposer.preparations == 0
