"""What a step runs and makes, and the state that a recording begins with.

Stated by the scheduler (plans), the engine (results) and the verifier of drafts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.events.event import Event


@dataclass(slots=True)
class StepPlanned(Event):
    """The batch of one step: a row per sequence, (sequence_id, start, num_new)."""

    rows: tuple[tuple[int, int, int], ...]
    num_waiting: int
    num_running: int


@dataclass(slots=True)
class DraftVerified(Event):
    """A draft tree of one sequence was checked against the model, in one step.

    token_ids: the tree's nodes, each after its parent; parents: each node's parent, -1 at the root;
    probabilities: the proposer's own, where it has them. accepted: the nodes of the accepted path,
    from the root on. bonus_token_id: the token that the model added after it.
    """

    sequence_id: int
    proposer: str
    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    probabilities: tuple[float, ...] | None
    accepted: tuple[int, ...]
    bonus_token_id: int


@dataclass(slots=True)
class StepDone(Event):
    """A step was committed: its new tokens as (sequence_id, token_id) and its times in seconds.

    num_computed: of each row of the plan, what its sequence has computed now. logprobs: of each
    token, (log-probability, ((token_id, log-probability), …) of the likeliest), or None where that
    was not asked; empty where nobody asked. device_seconds: of the forward pass, as the GPU
    counts (None on a CPU, where `seconds` says it). forced: which of `tokens`, by place, were the
    only ones that their grammar allowed.
    """

    tokens: tuple[tuple[int, int], ...]
    seconds: dict[str, float]
    num_free_blocks: int
    num_computed: tuple[int, ...] = ()
    logprobs: tuple[tuple[float, tuple[tuple[int, float], ...]] | None, ...] = ()
    device_seconds: float | None = None
    forced: tuple[int, ...] = ()


@dataclass(slots=True)
class StateSeen(Event):
    """The whole state between two steps: where a recording begins if not with a new engine.

    `workbench.trace.keyframe` writes and reads the fields.
    """

    running: tuple[int, ...]
    sequences: tuple[tuple[Any, ...], ...]
    blocks: tuple[tuple[Any, ...], ...]
    copies: tuple[tuple[int, int], ...]
    slots: tuple[tuple[Any, ...], ...]
    swapped: tuple[tuple[Any, ...], ...]
    offloading: tuple[tuple[int, int], ...]
    restoring: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class PolicyFailed(Event):
    """A user's policy raised, or named a block that it may not; the built-in one took its place."""

    policy: str
    error: str
