"""`StepRecord`: what one step planned, ran and committed, and how long each part took.

Made by `Engine.step` with the stopwatch `Laps`; kept by whoever wants it, never by the engine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from workbench.batch import SampledTokens, StepPlan
from workbench.describe import Described
from workbench.events import StepDone
from workbench.request import Sequence


class NewToken(NamedTuple):
    """A token that a step made, for a branch of a request."""

    request_id: str
    branch: int
    token_id: int


@dataclass(slots=True)
class StepRecord(Described):
    """The account of one `Engine.step()`.

    tokens: every token made. finished: the sequences that ended. seconds: wall time of `schedule`
    (and of asking for drafts), `run` (forward), `sample` (on CUDA this one waits for the forward)
    and `commit`.
    """

    plan: StepPlan
    tokens: list[NewToken] = field(default_factory=list)
    finished: list[Sequence] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The number of the step, from 1."""
        return self.plan.step

    def describe(self) -> dict[str, Any]:
        """Return the step in numbers."""
        return {
            "step": self.step,
            "rows": len(self.plan.sequences),
            "tokens in": self.plan.num_tokens,
            "tokens out": len(self.tokens),
            "finished": ", ".join(s.request.request_id for s in self.finished) or "-",
            "preempted": len(self.plan.preempted),
            **{f"{part} ms": round(1e3 * value, 3) for part, value in self.seconds.items()},
        }


def new_tokens(plan: StepPlan, sampled: SampledTokens) -> list[tuple[Sequence, int]]:
    """Return the tokens that a step has appended, in order of its rows; asked right after its
    commit. A row with a chooser has none yet, and one with a draft may have several."""
    rows = plan.sampled
    if sampled.accepted:
        return [
            (plan.sequences[row], token_id)
            for row in rows
            for token_id in plan.sequences[row].token_ids[_end(plan, row) :]
        ]
    starts, counts, sequences = plan.starts, plan.num_new, plan.sequences
    pairs = zip(rows, sampled.token_ids, strict=True)
    return [
        (sequences[row], token_id)
        for row, token_id in pairs
        if len(sequences[row].token_ids) > starts[row] + counts[row]
    ]


def _end(plan: StepPlan, row: int) -> int:
    """Return how many tokens a row's sequence had before the step."""
    return plan.starts[row] + (1 if row in plan.drafts else plan.num_new[row])


def step_done(
    step: int, new: list[tuple[Sequence, int]], seconds: dict[str, float], num_free_blocks: int
) -> StepDone:
    """Return the event of a committed step."""
    ids = tuple((sequence.sequence_id, token) for sequence, token in new)
    return StepDone(step, ids, seconds, num_free_blocks)


class Laps:
    """A stopwatch for consecutive parts: `lap(name)` books the time since the last lap."""

    __slots__ = ("_last", "seconds")

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last call under `name`."""
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now
