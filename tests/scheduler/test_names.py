"""Block names are computed once, and are those that the cache would compute."""

from __future__ import annotations

import pytest
from shadow import make_sequence

from workbench.cache import block_hash
from workbench.cache.prefix import root_hash
from workbench.scheduler import names as module
from workbench.scheduler.names import BlockNames


def test_names_are_the_chain_of_hashes() -> None:
    tokens = tuple(range(11))
    names = BlockNames(tokens, 4, "salt")
    first = block_hash(root_hash("salt"), tokens[:4])
    assert len(names) == 2
    assert names[1] == block_hash(first, tokens[4:8])
    assert list(names) == names[:] == [first, names[1]]
    with pytest.raises(IndexError):
        names[2]


def test_a_prompt_that_waits_is_hashed_once(make, step, monkeypatch) -> None:
    hashed: list[int] = []

    def counted(parent: bytes, token_ids) -> bytes:
        hashed.append(len(token_ids))
        return block_hash(parent, token_ids)

    monkeypatch.setattr(module, "block_hash", counted)
    for policy in ("fcfs", "longest_prefix_match"):
        scheduler, model = make(num_blocks=8, policy=policy)
        scheduler.add(make_sequence(0, [*[1, 2] * 12, 1], 4))
        step(scheduler, model)
        hashed.clear()
        late = make_sequence(1, [*[1, 2] * 8, *[0] * 8], 2)
        scheduler.add(late)
        for _ in range(2):
            step(scheduler, model)
            assert not late.num_computed, "it is meant to wait"
        assert 0 < len(hashed) <= 6, "once, not in every step"
        while scheduler.num_unfinished:
            step(scheduler, model)
        assert late.metrics.num_cached_tokens == 16
        assert not scheduler._queues._names, "nothing is kept of what has ended"
