"""Whether one more sequence may start: what it needs, what is free, what the others may still take.

Two policies, chosen by `SchedulerConfig.capacity`. Asked by the planner before it admits and by the
scheduler before it lets a fork run at once; both only read the block tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from workbench.cache import BlockManager
from workbench.config import Capacity
from workbench.request import Sequence, Status


class CapacityPolicy(Protocol):
    """Says how many blocks a sequence is counted with."""

    def length(self, sequence: Sequence) -> int:
        """Return for how many tokens a sequence must have room before it may start."""

    def reserve(self, blocks: BlockManager, holders: Iterable[Sequence]) -> int:
        """Return how many free blocks are kept for sequences that have their tables already."""


class MaxUtilization:
    """Room for its tokens so far is enough: the cache is as full as can be, at the price that a
    sequence may be preempted when those in flight have grown."""

    def length(self, sequence: Sequence) -> int:
        """Return how many tokens it has."""
        return sequence.num_tokens

    def reserve(self, blocks: BlockManager, holders: Iterable[Sequence]) -> int:
        """Return what running prompts lack: they are served before those that start now."""
        return sum(
            blocks.num_missing(s.sequence_id, s.num_computed, s.num_tokens)
            for s in holders
            if s.status is Status.RUNNING and s.num_tokens - s.num_computed > 1
        )


class GuaranteedNoEvict:
    """All that were started can grow to `max_num_tokens` together: nobody is ever preempted.

    Blocks shared as a prefix are in use anyway and count once. Of a shared block that is still to
    be written, every sharer is counted with a copy: in one step all of them may have to copy, and
    the original only becomes free when that step is committed.
    """

    def length(self, sequence: Sequence) -> int:
        """Return how many tokens' KV it will have at most: that of the last is never needed."""
        return max(sequence.max_num_tokens - 1, sequence.num_tokens)

    def reserve(self, blocks: BlockManager, holders: Iterable[Sequence]) -> int:
        """Return what all of them may still take until their ends."""
        return sum(
            blocks.num_missing(s.sequence_id, s.num_computed, self.length(s)) for s in holders
        )


CAPACITIES: dict[Capacity, CapacityPolicy] = {
    "max_utilization": MaxUtilization(),
    "guaranteed_no_evict": GuaranteedNoEvict(),
}
