"""Scheduling policies: a key function of a sequence; the smallest key goes first.

The waiting queue is served in key order, and when blocks run out the running sequence with the largest
key is preempted. A policy is any callable, so one can be written in a notebook cell and swapped in
between two steps: `engine.swap(scheduler_policy=lambda sequence: -sequence.num_prompt_tokens)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workbench.errors import ConfigError
from workbench.request import Sequence

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
