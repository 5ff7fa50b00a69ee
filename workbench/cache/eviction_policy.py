"""Eviction policies: which cached block loses its content when a sequence needs a block.

A policy is a function of the candidates, so one can be written in a notebook cell and swapped in
between two steps: `engine.swap(eviction=lambda blocks: min(blocks, key=lambda b:
b.num_hits).block_id)`. Held by the block pool, which never lets one take a block that is in use.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workbench.errors import ConfigError
from workbench.events import warn


@dataclass(frozen=True, slots=True)
class Evictable:
    """A block that may be evicted: nobody uses it, and no cached block continues it.

    token_ids: what it holds the KV of. num_hits: how often a sequence has found it. last_used: a
    count of releases, so the larger, the more recently. priority: what requests want of it now, see
    `Retention`.
    """

    block_id: int
    token_ids: tuple[int, ...]
    num_hits: int
    last_used: int
    priority: int


# Returns the `block_id` of one of the candidates. These come lowest priority first and, among
# equals, the least recently used first.
EvictionPolicy = Callable[[Sequence[Evictable]], int]


def lru(candidates: Sequence[Evictable]) -> int:
    """Lowest priority first, and of equals the least recently used."""
    return candidates[0].block_id


EVICTIONS: dict[str, EvictionPolicy] = {"lru": lru}


def get_eviction(policy: str | EvictionPolicy) -> EvictionPolicy:
    """Return a policy by name, or the one given; raise `ConfigError` for anything else."""
    if callable(policy):
        return policy
    if policy not in EVICTIONS:
        fix = f"Known: {', '.join(EVICTIONS)}; or pass a function of the candidates."
        raise ConfigError("eviction", policy, "no such policy", fix)
    return EVICTIONS[policy]


class GuardedEviction:
    """Applies a policy that may be user code; one that raises, or names a block that is no
    candidate, is told of and replaced by `lru`.

    `plain`: whether the policy is `lru`, which the queue knows how to apply without a search.
    on_failure: called with the policy's name and what went wrong.
    """

    def __init__(self, on_failure: Callable[[str, str], None]) -> None:
        self.policy: EvictionPolicy = lru
        self._on_failure = on_failure

    @property
    def plain(self) -> bool:
        """Whether blocks go in the queue's own order."""
        return self.policy is lru

    def choose(self, candidates: Sequence[Evictable]) -> int:
        """Return the block to evict; there must be a candidate."""
        try:
            block_id = self.policy(candidates)
            if any(candidate.block_id == block_id for candidate in candidates):
                return int(block_id)
            problem = f"{block_id!r} is none of the {len(candidates)} blocks it could choose from"
        except Exception as error:  # noqa: BLE001 - user code
            problem = "".join(traceback.format_exception(error))
        name = getattr(self.policy, "__name__", type(self.policy).__name__)
        self.policy = lru
        warn(f"eviction policy {name!r} failed; using lru from now on:\n{problem}", stacklevel=5)
        self._on_failure(name, problem)
        return lru(candidates)
