"""Whether one more sequence may start: what it needs, what is free, what the others may still take.

Two policies, chosen by `SchedulerConfig.capacity`. Asked by the planner before it admits and by the
scheduler before it lets a fork run at once; both only read the block tables.
"""

from __future__ import annotations

from typing import Protocol

from workbench.config import Capacity
from workbench.request import Sequence, Status


class CapacityPolicy(Protocol):
    """Says how many blocks a sequence is counted with."""

    def length(self, sequence: Sequence) -> int:
        """Return for how many tokens a sequence must have room before it may start."""

    def reserves(self, sequence: Sequence) -> bool:
        """Whether what a sequence with a table may still take, up to that length, is kept free."""


class MaxUtilization:
    """Room for its tokens so far is enough: the cache is as full as can be, at the price that a
    sequence may be preempted when those in flight have grown."""

    def length(self, sequence: Sequence) -> int:
        """Return how many tokens it has."""
        return sequence.num_tokens

    def reserves(self, sequence: Sequence) -> bool:
        """Only for running prompts: they are served before those that start now."""
        behind = sequence.num_tokens - sequence.num_computed
        return sequence.status is Status.RUNNING and behind > 1


class GuaranteedNoEvict:
    """All that were started can grow to `max_num_tokens` together: nobody is ever preempted.

    Blocks shared as a prefix are in use anyway and count once. Of a shared block that is still to
    be written, every sharer is counted with a copy: in one step all of them may have to copy, and
    the original only becomes free when that step is committed.
    """

    def length(self, sequence: Sequence) -> int:
        """Return how many tokens' KV it will have at most: that of the last is never needed."""
        return max(sequence.max_num_tokens - 1, sequence.num_tokens)

    def reserves(self, sequence: Sequence) -> bool:
        """For all of them, until their ends."""
        return True


CAPACITIES: dict[Capacity, CapacityPolicy] = {
    "max_utilization": MaxUtilization(),
    "guaranteed_no_evict": GuaranteedNoEvict(),
}
