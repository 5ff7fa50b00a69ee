"""`LongestPrefixMatch`: who finds most of its prompt in the cache goes first.

Requests with a common beginning then run one after the other, before it is evicted (SGLang calls
this `lpm`). Bound to a scheduler, whose cache it asks; each sequence once per step.
"""

from __future__ import annotations

from typing import Any

from workbench.request import Sequence, Status
from workbench.scheduler.view import SchedulerView


class LongestPrefixMatch:
    """Most cached tokens first, then first come. What shares nothing may starve under load."""

    def bind(self, scheduler: SchedulerView) -> BoundPrefixMatch:
        """Return the key function for one scheduler."""
        return BoundPrefixMatch(scheduler)


class BoundPrefixMatch:
    """The key function; what the cache answered is kept until the next `refresh`."""

    def __init__(self, scheduler: SchedulerView) -> None:
        self._scheduler = scheduler
        self._found: dict[int, int] = {}

    def refresh(self) -> None:
        """Forget what was found: the cache has changed."""
        self._found.clear()

    def __call__(self, sequence: Sequence) -> Any:
        """Return a key that falls with the number of cached tokens; of one that runs, computed."""
        number = sequence.sequence_id
        if sequence.status is Status.RUNNING:
            return -sequence.num_computed, number
        if number not in self._found:
            self._found[number] = self._scheduler.num_cached_tokens(sequence)
        return -self._found[number], number
