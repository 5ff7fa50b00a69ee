"""Dropping policies: exactly the attention that is left, whatever happens to a sequence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from drive import MakeEngine, drawn, greedy, tokens_of
from masked import dense_logprobs
from tiny import VOCAB, random_prompts

from workbench import events
from workbench.cache.dropping import HeavyHitter, KeptBlocks, SinkWindow, keep_all
from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.sampling_params import SamplingParams
from workbench.trace import Trace

Folder = Callable[[str], Path]
SIZE = 4
PROMPT = random_prompts(2, seed=71, longest=40)[0] or [1, 2]
LONG = [3 + 7 * i % (VOCAB - 5) for i in range(29)]


def forced(tokens: list[int], num_prompt: int, **settings: Any) -> SamplingParams:
    """Return parameters under which a request generates these tokens, and reports on each."""

    def force(token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        logits.fill_(-torch.inf)
        logits[tokens[len(token_ids)]] = 0.0
        return logits

    count = len(tokens) - num_prompt
    chosen = {"max_tokens": count, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    return SamplingParams(**{**chosen, "logits_processors": [force], **settings})


@pytest.fixture(scope="module")
def hf(request: pytest.FixtureRequest) -> Any:
    checkpoint: Folder = request.getfixturevalue("checkpoint")
    auto = transformers.AutoModelForCausalLM
    folder = checkpoint("llama")
    return auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def sink_window(num_sinks: int, window: int) -> Callable[..., list[int]]:
    """Return by hand what is neither sink nor window, written with tokens, not with blocks."""

    def choose(length: int, kept: list[int], _: dict[int, float]) -> list[int]:
        wanted = {p for p in range(length + 1) if p < num_sinks or p > length - window}
        return [b for b in kept if not wanted & set(range(b * SIZE, (b + 1) * SIZE))]

    return choose


def heavy_hitter(num_heavy: int, num_recent: int) -> Callable[..., list[int]]:
    """Return by hand what neither is recent nor had attention."""

    def choose(length: int, kept: list[int], masses: dict[int, float]) -> list[int]:
        gone = [b for b in kept if (b + 1) * SIZE - 1 <= length - num_recent]
        for _ in range(num_heavy // SIZE):
            if gone:
                gone.remove(max(gone, key=lambda b: (masses[b], b)))
        return gone

    return choose


class Recorded:
    """A policy that remembers what it has left of the full blocks, call by call."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.kept = policy, []
        self.needs_attention = getattr(policy, "needs_attention", False)

    def __call__(self, kept: KeptBlocks) -> list[int]:
        dropped = self.policy(kept)
        self.kept.append([block.index for block in kept.blocks if block.index not in dropped])
        return dropped


POLICIES = {
    "sinks and window": (SinkWindow(6, 13), sink_window(6, 13)),
    "a window alone": (SinkWindow(0, 8), sink_window(0, 8)),
    "sinks alone": (SinkWindow(4, 1), sink_window(4, 1)),
    "heavy": (HeavyHitter(8, 10), heavy_hitter(8, 10)),
    "recent alone": (HeavyHitter(0, 6), heavy_hitter(0, 6)),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("backend", ["reference", "sdpa", "native"])
def test_it_is_dense_attention_under_a_mask(
    make_engine: MakeEngine, hf: Any, backend: str, name: str
) -> None:
    policy, choose = POLICIES[name]
    tokens, num_prompt = [*LONG, *random_prompts(1, 5)[0], *reversed(LONG)][:60], 11
    expected, kept = dense_logprobs(hf, tokens, num_prompt, SIZE, choose)
    watched = Recorded(policy)
    engine = make_engine(backend=backend, block_size=SIZE, dropping=watched)
    request = engine.add(tokens[:num_prompt], forced(tokens, num_prompt))
    while engine.has_work:
        engine.step()
        engine.cache.check()
    [output] = engine.forget(request).outputs
    assert output.token_ids == tokens[num_prompt:]
    got = [entry.logprob for entry in output.logprobs or []]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert watched.kept == kept[: len(watched.kept)]
    assert engine.cache.stats().dropped >= 5


SETTINGS = [
    pytest.param({}, id="together"),
    pytest.param({"max_batch_tokens": 7}, id="chunked"),
    pytest.param({"max_batch_tokens": 7, "chunking": "equal_progress"}, id="equal progress"),
    pytest.param({"chunked_prefill": False}, id="whole prompts"),
    pytest.param({"num_blocks": 16}, id="preempted"),
    pytest.param({"num_blocks": 16, "host_blocks": 60, "preemption": "swap"}, id="swapped"),
    pytest.param({"num_blocks": 30, "capacity": "guaranteed_no_evict"}, id="no eviction"),
    pytest.param({"prefix_reuse": False}, id="no reuse"),
    pytest.param({"backend": "native"}, id="native"),
]
CROWD = [*random_prompts(4, seed=72, longest=30), LONG, [*LONG[:-3], 9]]


def quiet(make_engine: MakeEngine, policy: Any, prompts: Any, params: Any) -> list[list[int]]:
    """Return the tokens of each prompt alone under a policy, in whole prompts, without reuse."""
    each = params if isinstance(params, list) else [params] * len(prompts)
    settings = {"backend": "reference", "prefix_reuse": False, "block_size": SIZE}
    engine = make_engine(dropping=policy, **settings)
    return [tokens_of(engine, [p], own)[0] for p, own in zip(prompts, each, strict=True)]


@pytest.mark.parametrize("policy", [SinkWindow(5, 11), HeavyHitter(8, 6)], ids=["window", "heavy"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_tokens_are_a_sequences_own(
    make_engine: MakeEngine, policy: Any, settings: dict[str, Any]
) -> None:
    expected = quiet(make_engine, policy, CROWD, greedy(30))
    engine = make_engine(**{"block_size": SIZE, "dropping": policy, **settings})
    with Trace.record(engine) as trace:
        assert tokens_of(engine, CROWD, greedy(30)) == expected
        assert tokens_of(engine, CROWD, greedy(30)) == expected, "with what the cache has by now"
    assert trace.of(events.BlocksDropped)
    assert not trace.of(events.PolicyFailed)
    if settings.get("num_blocks") == 16:
        preempted = trace.of(events.Preempted)
        prompt = {e.sequence_id: e.num_prompt_tokens for e in trace.of(events.RequestAdded)}
        after = [event for event in preempted if event.num_computed > prompt[event.sequence_id]]
        assert after, "nobody was preempted after some output"
        if "host_blocks" in settings:
            causes = [event.cause for event in preempted if event.kind == "recompute"]
            assert any("were dropped or weighed" in cause for cause in causes)


@pytest.mark.parametrize("policy", [SinkWindow(5, 11), HeavyHitter(8, 6)], ids=["window", "heavy"])
def test_branches_forks_and_time(make_engine: MakeEngine, policy: Any, tmp_path: Path) -> None:
    engine = make_engine(block_size=SIZE, dropping=policy, num_blocks=200)
    [output] = engine.generate([LONG], drawn(40, 30, n=3))
    each = [drawn(40 + i, 30) for i in range(3)]
    expected = quiet(make_engine, policy, [LONG] * 3, each)
    assert [o.token_ids for o in output.outputs] == expected

    [expected] = quiet(make_engine, policy, [LONG], greedy(40))
    name = engine.add(LONG, greedy(40))
    engine.run(22)  # within a block: whoever writes it first copies it
    [sequence] = engine.scheduler.running
    parent = engine.cache.blocks.tables[sequence.sequence_id]
    with Trace.record(engine) as trace:
        twin = engine.fork(name)
    child = engine.cache.blocks.tables[max(engine.cache.blocks.tables)]
    assert parent.holes
    assert child.holes == parent.holes
    assert child.block_ids == parent.block_ids, "all are shared"
    assert [event.indices for event in trace.of(events.BlocksDropped)] == [tuple(parent.holes)]
    assert [event.index for event in trace.of(events.BlockShared)] == parent.indices
    state, path = engine.checkpoint(), engine.save(name, tmp_path / "request.json")
    before = engine.cache.stats().copies
    engine.run()
    assert engine.cache.stats().copies > before
    assert engine.output(name).outputs[0].token_ids == expected
    assert engine.output(twin).outputs[0].token_ids == expected
    engine.restore(state)
    loaded = engine.load(path, request_id="loaded")
    engine.run()
    for request in (name, twin, loaded):
        assert engine.output(request).outputs[0].token_ids == expected


def test_what_is_shared_stays_for_others_and_nothing_is_published_after_a_drop(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(block_size=SIZE)
    blocks = engine.cache.blocks
    plain = engine.add(LONG, greedy(24))
    engine.run(2)
    [first] = engine.scheduler.running
    engine.swap(dropping=lambda kept: [b.index for b in kept.blocks if kept.no_such_field != first])
    with pytest.warns(UserWarning, match="keeping all from now on"):
        engine.run(1)  # there is no such field
    policy = SinkWindow(0, 9)
    mine = {"ids": None}

    def others_only(kept: KeptBlocks) -> list[int]:
        return policy(kept) if kept.request_id == mine["ids"] else []

    engine.swap(dropping=others_only)
    mine["ids"] = engine.add(LONG, greedy(24))
    engine.run(3)
    table, other = (blocks.tables[number] for number in sorted(blocks.tables)[::-1])
    assert table.holes == list(range(len(table.holes))) != []
    assert other.indices == list(range(other.stop)), "the neighbour keeps what they shared"
    assert all(engine.cache.blocks.ref_counts[block] for block in other.block_ids)
    full = len(LONG) // SIZE * SIZE
    engine.abort(plain)
    engine.run()
    output = engine.forget(mine["ids"]).outputs[0].token_ids
    found = blocks.lookup([*LONG, *output, 1])
    assert found.num_tokens < len(LONG) + SIZE, "only what was computed before the first drop"
    assert found.num_tokens >= full
    assert [output] == quiet(make_engine, policy, [LONG], greedy(24))


def test_memory_is_bounded(make_engine: MakeEngine) -> None:
    engine = make_engine(block_size=SIZE, dropping=SinkWindow(SIZE, 3 * SIZE))
    engine.add(LONG, greedy(150))
    most = 0
    while engine.has_work:
        engine.step()
        [*tables] = engine.cache.blocks.tables.values()
        if tables and tables[0].stop * SIZE > len(LONG) + SIZE:
            most = max(most, len(tables[0].block_ids))
    assert most == 1 + 3 + 1, "sinks, the window, and what it ends within"


def test_failing_steps_ask_nobody_twice(make_engine: MakeEngine) -> None:
    """A policy is asked once for each token: even one that is no function of its view is safe."""
    asked: list[int] = []

    def count(kept: KeptBlocks) -> list[int]:
        asked.append(kept.num_tokens)
        return [kept.blocks[0].index] if len(asked) % 3 == 0 else []

    engine = make_engine(block_size=SIZE, dropping=count)
    engine.add(LONG, greedy(20))
    run = engine.runner.run
    for step in range(60):
        if not engine.has_work:
            break
        engine.runner.run = run if step % 2 else lambda plan: run(plan) and 1 / 0
        try:
            engine.step()
        except ZeroDivisionError:
            engine.cache.check()
    engine.runner.run = run
    assert asked == list(range(len(LONG), len(LONG) + 19))


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (lambda kept: 1 / 0, "ZeroDivisionError"),
        (lambda kept: [kept.num_tokens // SIZE], "are no full blocks that"),
        (lambda kept: [-1], "are no full blocks that"),
        (lambda kept: ["0"], "are no full blocks that"),
        (lambda kept: 3, "TypeError"),
        (lambda kept: [[]], "TypeError"),
    ],
)
def test_a_policy_that_fails_is_replaced(
    make_engine: MakeEngine, alone: Any, policy: Any, problem: str
) -> None:
    engine = make_engine(block_size=SIZE)
    engine.swap(dropping=policy)
    with Trace.record(engine) as trace, pytest.warns(UserWarning, match="keeping all from now on"):
        tokens = tokens_of(engine, CROWD, greedy(12))
    assert tokens == alone(CROWD, greedy(12))
    [failed] = trace.of(events.PolicyFailed)
    assert problem in failed.error
    assert engine.scheduler.dropping is keep_all


def test_what_is_dropped_can_be_dropped_only_once(make_engine: MakeEngine) -> None:
    engine = make_engine(block_size=SIZE, dropping=lambda kept: [0])
    with pytest.warns(UserWarning, match=r"\[0\] are no full blocks"):
        tokens_of(engine, [LONG], greedy(3))


@pytest.mark.parametrize("family", ["mistral", "qwen2-windows"])
def test_layers_with_a_window_of_their_own_are_refused(
    make_engine: MakeEngine, family: str
) -> None:
    with pytest.raises(ConfigError, match=r"dropping='SinkWindow\(.*have a window already"):
        make_engine(family, dropping=SinkWindow())
    engine = make_engine(family)
    with pytest.raises(ConfigError, match="dropping="):
        engine.swap(dropping="heavy_hitter", scheduler_policy="priority")
    assert engine.scheduler.dropping is keep_all
    engine.swap(dropping="keep_all")


def test_settings(make_engine: MakeEngine) -> None:
    with pytest.raises(ConfigError, match="dropping='streaming': no such policy"):
        make_engine(dropping="streaming")
    for bad in ({"num_sinks": -1}, {"window": 0}, {"window": 2.5}):
        with pytest.raises(ConfigError, match="SinkWindow"):
            SinkWindow(**bad)
    for bad in ({"num_heavy": -1}, {"num_recent": 0}):
        with pytest.raises(ConfigError, match="HeavyHitter"):
            HeavyHitter(**bad)


def test_without_a_policy_nothing_is_asked_or_weighed(make_engine: MakeEngine) -> None:
    engine: Engine = make_engine(block_size=SIZE)
    engine.swap(dropping=HeavyHitter(8, 6))
    name = engine.add(LONG, greedy(20))
    plans = [engine.step().plan for _ in range(4)]
    assert [plan.weighed for plan in plans] == [[0]] * 4
    engine.swap(dropping="keep_all")
    masses = dict(next(iter(engine.cache.blocks.tables.values())).masses)
    plans = [record.plan for record in engine.run()]
    assert not any(plan.weighed for plan in plans)
    assert masses
    assert len(engine.output(name).outputs[0].token_ids) == 20


def test_nobody_waits_for_blocks_that_are_never_published(make_engine: MakeEngine) -> None:
    policy = SinkWindow(0, 9)
    engine = make_engine(block_size=SIZE, dropping=policy)
    first = engine.add(LONG, greedy(40))
    engine.run(17)
    engine.pause(first, release=True)
    engine.resume(first)
    engine.run(6)  # it computes its output again, token by token
    prompt = [*LONG, *engine.output(first).outputs[0].token_ids]
    second = engine.add(prompt, greedy(5))
    record = engine.step()
    assert [s.request.request_id for s in record.plan.sequences] == [first, second]
    engine.run()
    output = engine.output(second).outputs[0].token_ids
    assert [output] == quiet(make_engine, policy, [prompt], greedy(5))
