"""Reusing a prefix that is in the cache changes what is computed, never what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drive import Alone, MakeEngine, greedy, tokens_of
from tiny import random_prompts

from workbench.errors import RequestError
from workbench.events import BlockEvicted, PrefixHit, PrefixMiss
from workbench.retention import Retention
from workbench.trace import Trace

BLOCK = 8
LONG = random_prompts(1, seed=11)[0] + list(range(1, 64))
PREFIX = LONG[: 3 * BLOCK]


@pytest.mark.parametrize(
    ("first", "second", "num_reused"),
    [
        pytest.param(PREFIX, PREFIX, 3 * BLOCK - 1, id="equal, an exact number of blocks"),
        pytest.param([*PREFIX, 9], [*PREFIX, 9], 3 * BLOCK, id="equal, one token over"),
        pytest.param(PREFIX, [*PREFIX, 9], 3 * BLOCK, id="one token longer"),
        pytest.param([*PREFIX, 1, 2], [*PREFIX, 7, 8, 9], 3 * BLOCK, id="another tail"),
        pytest.param(PREFIX, [*PREFIX[:13], 99, 99], 13, id="parts within a block"),
        pytest.param(PREFIX, [99, *PREFIX[1:]], 0, id="another first token"),
        pytest.param(PREFIX, PREFIX[1:], 0, id="shifted by one"),
        pytest.param(PREFIX[:BLOCK], PREFIX[:BLOCK], BLOCK - 1, id="one block exactly"),
        pytest.param([3], [3], 0, id="one token"),
        pytest.param(LONG, LONG, 8 * BLOCK - 1, id="long"),
    ],
)
def test_a_cached_prefix_changes_nothing(
    make_engine: MakeEngine,
    alone: Alone,
    backend: str,
    device: str,
    first: list[int],
    second: list[int],
    num_reused: int,
) -> None:
    parts = {"backend": backend, "device": device, "block_size": BLOCK}
    expected = alone([first, second], greedy(12), **parts)
    engine = make_engine(**parts)
    with Trace.record(engine) as trace:
        got = tokens_of(engine, [first], greedy(12)) + tokens_of(engine, [second], greedy(12))
    assert got == expected
    hits = [event.num_tokens for event in trace.of(PrefixHit)]
    assert hits == ([num_reused] if num_reused else [])


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_prompts_that_share_a_prefix_in_flight(
    make_engine: MakeEngine, alone: Alone, backend: str, device: str, family: str
) -> None:
    parts = {"model": family, "backend": backend, "device": device, "block_size": BLOCK}
    prompts = [PREFIX + tail for tail in random_prompts(6, seed=4, longest=20)]
    expected = alone(prompts, greedy(16), **parts)
    assert tokens_of(make_engine(**parts, prefix_reuse=False), prompts, greedy(16)) == expected
    engine = make_engine(**parts)
    ids = []
    used = []
    for prompt in prompts:
        ids.append(engine.add(prompt, greedy(16)))
        engine.step()
        used.append(engine.cache.blocks.num_used)
    shared = {count for count in engine.cache.blocks.ref_counts if count > 1}
    assert shared, "the prefix was to be shared while all of them run"
    engine.run()
    assert [engine.output(i).outputs[0].token_ids for i in ids] == expected
    cached = [engine.output(i).metrics.num_cached_tokens for i in ids]
    assert cached == [0, *[len(PREFIX)] * 5]


def test_an_answer_is_reused_as_the_next_prompt(make_engine: MakeEngine, alone: Alone) -> None:
    engine = make_engine(block_size=BLOCK)
    first = tokens_of(engine, [PREFIX], greedy(20))[0]
    follow_up = [*PREFIX, *first, 5, 6]
    output = engine.generate([follow_up], greedy(10))[0]
    # The KV of the last token that was made has never been computed.
    assert output.metrics.num_cached_tokens == (len(PREFIX) + 19) // BLOCK * BLOCK
    assert [output.outputs[0].token_ids] == alone([follow_up], greedy(10))


def test_what_was_evicted_is_computed_again(
    make_engine: MakeEngine, alone: Alone, backend: str, device: str
) -> None:
    engine = make_engine(backend=backend, device=device, block_size=BLOCK, num_blocks=8)
    others = random_prompts(4, seed=6, longest=40)
    expected = alone([PREFIX, *others, PREFIX], greedy(12), device=device)
    with Trace.record(engine) as trace:
        got = [tokens_of(engine, [p], greedy(12))[0] for p in [PREFIX, *others, PREFIX]]
    assert got == expected
    assert trace.of(BlockEvicted)
    reason = trace.of(PrefixMiss)[-1].reason
    assert reason.startswith("block 0 was evicted at step "), reason


def test_namespaces_never_share(make_engine: MakeEngine) -> None:
    engine = make_engine(block_size=BLOCK)
    with Trace.record(engine) as trace:
        for namespace in ("", "tenant", "", "tenant"):
            engine.add(LONG, greedy(4), namespace=namespace)
            engine.run()
    hits, misses = trace.of(PrefixHit), trace.of(PrefixMiss)
    assert [hit.sequence_id for hit in hits] == [2, 3]
    assert [miss.sequence_id for miss in misses] == [0, 1]
    assert misses[1].reason == "cached only in namespace ''"
    outputs = {tuple(engine.output(name).outputs[0].token_ids) for name in engine.requests}
    assert len(outputs) == 1


def test_reuse_can_be_turned_off(make_engine: MakeEngine) -> None:
    engine = make_engine(block_size=BLOCK, prefix_reuse=False)
    with Trace.record(engine) as trace:
        engine.generate([LONG], greedy(4))
        engine.generate([LONG], greedy(4))
    assert not trace.of(PrefixHit)
    assert {miss.reason for miss in trace.of(PrefixMiss)} == {"prefix reuse is off"}


def test_what_is_to_be_retained_outlives_what_is_not(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    """A prefix of priority 90 is still there after requests that evict all the rest."""
    found = {}
    for priority in (35, 90):
        engine = make_engine(block_size=BLOCK, num_blocks=16)
        kept = [Retention(0, 2 * BLOCK, priority=priority), Retention(priority=0, part="decode")]
        name = engine.add([*PREFIX, 9], greedy(8), retention=kept)
        engine.step()
        engine.save(name, tmp_path / "request.json")
        engine.abort(name)
        engine.forget(name)
        engine.load(tmp_path / "request.json")
        engine.run()
        for prompt in random_prompts(8, seed=12, longest=40):
            engine.generate([prompt], greedy(12))
        found[priority] = engine.cache.blocks.lookup([*PREFIX, 9], partial=False).num_tokens
    assert found == {35: 0, 90: 2 * BLOCK}


def test_a_bad_retention_queues_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(RequestError, match=r"retention=.*overlap"):
        engine.add(PREFIX, greedy(4), retention=[Retention(0, 9), Retention(8)])
    assert not engine.has_work


def test_partial_reuse_can_be_turned_off(make_engine: MakeEngine) -> None:
    engine = make_engine(block_size=BLOCK, partial_reuse=False)
    engine.generate([LONG], greedy(4))
    output = engine.generate([[*LONG[:13], 9, 9, 9]], greedy(4))[0]
    assert output.metrics.num_cached_tokens == BLOCK


def test_every_cause_is_told(make_engine: MakeEngine) -> None:
    """One lookup of each kind, by what the event says of it."""
    engine = make_engine(num_blocks=12, block_size=4, host_blocks=2)
    first, second = list(range(1, 22)), list(range(100, 121))

    def causes(prompt: list[int], **wishes: Any) -> tuple[str, str]:
        params = greedy(1, **wishes.pop("asked", {}))
        with Trace.record(engine) as trace:
            engine.add(prompt, params, **wishes)
            engine.run()
        [told] = trace.of(PrefixHit) + trace.of(PrefixMiss)
        return told.cause, told.reason

    assert causes(first) == ("new", "no such prefix")
    assert causes(first)[0] == "whole"
    assert causes(first[:3]) == (
        "short",
        "prompt shorter than a block; partial: 2 of 4 tokens of block 0 copied",
    )
    assert causes([*first[:9], 50, 51, 52, 53])[0] == "new"
    assert causes(first, namespace="salt") == ("namespace", "cached only in namespace ''")
    asked = {"prompt_logprobs": 0}
    assert causes(first, asked=asked) == ("asked", "the request asks about every token from 0 on")
    for start in (0, 1, 2):  # push the first ones out, of the device and of the host
        causes([token + 100 + 30 * start for token in second])
    cause, reason = causes(first)
    assert cause == "evicted"
    assert "was evicted at step" in reason
    assert " for sequence " in reason
    assert reason.split(";")[0].endswith(", and is not on the host")
    plain = make_engine(prefix_reuse=False)
    plain.add(first, greedy(1))
    with Trace.record(plain) as trace:
        plain.run()
    assert trace.of(PrefixMiss)[0].cause == "off"
