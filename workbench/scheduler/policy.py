"""Scheduling policies: a key function of a sequence; the smallest key goes first.

The waiting queue is served in key order, and when blocks run out the running sequence with the
largest key is preempted. A policy is any callable, so one can be written in a notebook cell and
swapped in between two steps: `engine.swap(scheduler_policy=lambda sequence:
-sequence.num_prompt_tokens)`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Any

from workbench.errors import ConfigError
from workbench.events import warn
from workbench.request import Sequence, Status

Policy = Callable[[Sequence], Any]


def fcfs(sequence: Sequence) -> Any:
    """First come, first served."""
    return sequence.sequence_id


def shortest_first(sequence: Sequence) -> Any:
    """Shortest prompt first: low mean latency, at the long ones' expense."""
    return sequence.num_prompt_tokens, sequence.sequence_id


def priority(sequence: Sequence) -> Any:
    """Smallest `priority` of the request first, then first come."""
    return sequence.request.priority, sequence.sequence_id


POLICIES: dict[str, Policy] = {
    "fcfs": fcfs,
    "shortest_first": shortest_first,
    "priority": priority,
}


def get_policy(policy: str | Policy) -> Policy:
    """Return a policy by name, or the callable itself; raise `ConfigError` for anything else."""
    if callable(policy):
        return policy
    if policy not in POLICIES:
        known = ", ".join(POLICIES)
        raise ConfigError(
            "policy", policy, "no such policy", f"Known: {known}; or pass a callable."
        )
    return POLICIES[policy]


def policy_name(policy: Policy) -> str:
    """Return how a policy is shown."""
    return getattr(policy, "__name__", type(policy).__name__)


class GuardedPolicy:
    """Applies a policy that may be user code: one that raises is told of and replaced by `fcfs`.

    on_failure: called with the policy's name and the traceback.
    """

    def __init__(self, policy: Policy, on_failure: Callable[[str, str], None]) -> None:
        self.policy, self._on_failure = policy, on_failure

    def sort(self, waiting: list[Sequence]) -> None:
        """Sort in place, first to be served first.

        A policy may add and abort requests meanwhile; whatever else it does to the queue is undone.
        """
        if len(waiting) < 2:
            return
        before = list(waiting)
        try:
            ordered = sorted(before, key=self._key)
        except Exception as error:  # noqa: BLE001 - user code
            self._replace(error)
            ordered = sorted(before, key=self._key)
        if waiting != before:
            known = {sequence.sequence_id for sequence in before}
            added = [sequence for sequence in waiting if sequence.sequence_id not in known]
            ordered = [s for s in ordered if s.status is Status.WAITING] + added
        waiting[:] = ordered

    def last(self, sequences: Iterable[Sequence]) -> Sequence:
        """Return the sequence that goes last."""
        candidates = list(sequences)
        try:
            return max(candidates, key=self._key)
        except Exception as error:  # noqa: BLE001 - user code
            self._replace(error)
            return max(candidates, key=self._key)

    def _key(self, sequence: Sequence) -> tuple[Any, int]:
        """Rank a request's branches together: beams that wait for each other must not be torn."""
        return self.policy(sequence.leader or sequence), sequence.sequence_id

    def _replace(self, error: Exception) -> None:
        name = policy_name(self.policy)
        trace = "".join(traceback.format_exception(error))
        self.policy = fcfs
        warn(f"policy {name!r} raised; using fcfs from now on:\n{trace}", stacklevel=5)
        self._on_failure(name, trace)
