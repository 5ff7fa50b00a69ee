"""`StepRecord`: what one step planned, ran and committed, and how long each part took.

Made by `Engine.step` with the stopwatch `Laps`; kept by whoever wants it, never by the engine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from workbench.batch import PassTimer, SampledTokens, StepPlan
from workbench.describe import Described
from workbench.events import StepDone
from workbench.request import Sequence, Status, TokenLogprobs


class NewToken(NamedTuple):
    """A token that a step made, for a branch of a request."""

    request_id: str
    branch: int
    token_id: int


@dataclass(slots=True)
class StepRecord(Described):
    """The account of one `Engine.step()`.

    tokens: every token made. finished: the sequences that ended. seconds:
    wall time of `schedule`, `run` (forward), `sample` (on CUDA this one waits for the forward) and
    `commit`.
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


def new_tokens(rows: list[Sequence], sampled: SampledTokens) -> list[tuple[Sequence, int]]:
    """Return the tokens that a step is about to append: of rows that still run, without an error,
    and without a chooser that decides later."""
    pairs = list(zip(rows, sampled.token_ids, strict=True))
    for place in sorted(sampled.errors, reverse=True):
        del pairs[place]
    return [(s, t) for s, t in pairs if s.chooser is None and s.status is Status.RUNNING]


def step_done(
    plan: StepPlan,
    new: list[tuple[Sequence, int]],
    sampled: SampledTokens,
    seconds: dict[str, float],
    num_free_blocks: int,
    timer: PassTimer | None = None,
) -> StepDone:
    """Return the event of a committed step, whose new tokens are `new`."""
    computed = tuple([sequence.num_computed for sequence in plan.sequences])
    tokens = tuple([(sequence.sequence_id, token) for sequence, token in new])
    told = () if sampled.logprobs is None else _told(plan, new, sampled.logprobs)
    on_device = None if timer is None else timer.seconds
    return StepDone(plan.step, tokens, seconds, num_free_blocks, computed, told, on_device)


def _told(
    plan: StepPlan, new: list[tuple[Sequence, int]], entries: list[TokenLogprobs | None]
) -> tuple[tuple[float, tuple[tuple[int, float], ...]] | None, ...]:
    """Return what is reported of each new token."""
    rows = zip(plan.sampled, entries, strict=True)
    entry_of = {plan.sequences[row].sequence_id: entry for row, entry in rows}
    found = [entry_of[sequence.sequence_id] for sequence, _ in new]
    return tuple([None if entry is None else (entry.logprob, entry.top) for entry in found])


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
