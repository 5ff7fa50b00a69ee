"""`SchedulerView`: what a policy that was bound to a scheduler may ask of it.

`Scheduler` fulfils it; apart from it so that policies need not know the scheduler's module.
"""

from __future__ import annotations

from typing import Protocol

from workbench.request import Sequence


class SchedulerView(Protocol):
    """The queues as copies, and what the cache holds."""

    @property
    def waiting(self) -> list[Sequence]:
        """The waiting sequences, as they were last ordered."""

    @property
    def running(self) -> list[Sequence]:
        """The running sequences."""

    def num_cached_tokens(self, sequence: Sequence) -> int:
        """Return how many of its first prompt tokens lie in full blocks of the cache."""
