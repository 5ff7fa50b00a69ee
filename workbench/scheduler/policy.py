"""Scheduling policies: a key of a sequence; the smallest key goes first.

The waiting queue is served in key order, and when blocks run out the running sequence with the
largest key is preempted. A policy is a key function, so one can be written in a notebook cell and
swapped in between two steps: `engine.swap(scheduler_policy=lambda sequence:
-sequence.num_prompt_tokens)`. One that has to know more than the sequence has a `bind` method that
is given the scheduler and returns the key function; state lives in what it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from workbench.errors import ConfigError
from workbench.request import Sequence
from workbench.scheduler.fair_share import FairShare
from workbench.scheduler.prefix_match import LongestPrefixMatch
from workbench.scheduler.view import SchedulerView

KeyFunction = Callable[[Sequence], Any]


class BindablePolicy(Protocol):
    """A policy that asks its scheduler.

    What `bind` returns may also have `refresh()`, called before the queue is put in order, and
    `committed(plan)`, called after each step.
    """

    def bind(self, scheduler: SchedulerView) -> KeyFunction:
        """Return the key function for one scheduler."""


Policy = KeyFunction | BindablePolicy


def fcfs(sequence: Sequence) -> Any:
    """First come, first served. Nobody starves."""
    return sequence.sequence_id


def shortest_first(sequence: Sequence) -> Any:
    """Shortest prompt first: low mean latency, at the long ones' expense."""
    return sequence.num_prompt_tokens, sequence.sequence_id


def priority(sequence: Sequence) -> Any:
    """Smallest `priority` of the request first, then first come. High numbers may starve."""
    return sequence.request.priority, sequence.sequence_id


def deadline_first(sequence: Sequence) -> Any:
    """Who has to end first goes first (earliest deadline first); then those without a time-out."""
    deadline = sequence.request.deadline
    return float("inf") if deadline is None else deadline, sequence.sequence_id


class AgedPriority:
    """`priority`, where each `period` seconds of waiting count as much as one level.

    All age alike, so the order of two never changes and the key need not know the time: whoever
    comes a level's period later is one level behind. Nobody starves: of those that arrive more than
    `levels * period` later, none goes first.
    """

    def __init__(self, period: float = 10.0) -> None:
        """Raise `ConfigError` unless `period` is above 0."""
        if not period > 0:
            raise ConfigError("period", period, "must be seconds above 0", "Raise it.")
        self.period = period

    def __call__(self, sequence: Sequence) -> Any:
        """Return the level that it had at time zero."""
        return sequence.request.priority + sequence.metrics.arrival / self.period


POLICIES: dict[str, Policy] = {
    "fcfs": fcfs,
    "shortest_first": shortest_first,
    "priority": priority,
    "aged_priority": AgedPriority(),
    "deadline_first": deadline_first,
    "fair_share": FairShare(),
    "longest_prefix_match": LongestPrefixMatch(),
}


def get_policy(policy: str | Policy) -> Policy:
    """Return a policy by name, or the one given; raise `ConfigError` for anything else."""
    if callable(policy) or hasattr(policy, "bind"):
        return policy
    if policy not in POLICIES:
        known = ", ".join(POLICIES)
        raise ConfigError(
            "policy", policy, "no such policy", f"Known: {known}; or pass a callable."
        )
    return POLICIES[policy]


def policy_name(policy: Policy) -> str:
    """Return how a policy is shown."""
    names = [name for name, known in POLICIES.items() if known is policy]
    return names[0] if names else getattr(policy, "__name__", type(policy).__name__)
