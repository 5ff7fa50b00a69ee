"""`StepRecord`: what one step planned, ran and committed, and how long each part took.

Made by `Engine.step` with the stopwatch `Laps`; kept by whoever wants it, never by the engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from workbench.batch import StepPlan
from workbench.cache import Blocks
from workbench.describe import Described
from workbench.events import StepDone
from workbench.request import Sequence, TokenLogprobs
from workbench.results import PassTimer, SampledTokens


class NewToken(NamedTuple):
    """A token that a step made, for a branch of a request."""

    request_id: str
    branch: int
    token_id: int


@dataclass(slots=True, repr=False)
class StepRecord(Described):
    """The account of one `Engine.step()`.

    made: every token, and whose. finished: the sequences that ended. seconds: wall time of
    `schedule` (and of asking for drafts), `run` (forward), `sample` (on CUDA this one waits for the
    forward; in an overlapped loop it also starts the next) and `commit`.
    """

    plan: StepPlan
    made: list[tuple[Sequence, int]] = field(default_factory=list)
    finished: list[Sequence] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The number of the step, from 1."""
        return self.plan.step

    @property
    def tokens(self) -> list[NewToken]:
        """Every token made, by request."""
        return [NewToken(s.request.request_id, s.index, token) for s, token in self.made]

    def describe(self) -> dict[str, Any]:
        """Return the step in numbers."""
        return {
            "step": self.step,
            "rows": len(self.plan.sequences),
            "tokens in": self.plan.num_tokens,
            "tokens out": len(self.made),
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
    plan: StepPlan,
    new: list[tuple[Sequence, int]],
    sampled: SampledTokens,
    seconds: dict[str, float],
    blocks: Blocks,
    timer: PassTimer | None = None,
) -> StepDone:
    """Return the event of a committed step, whose new tokens are `new`."""
    computed = tuple([sequence.num_computed for sequence in plan.sequences])
    tokens = tuple([(sequence.sequence_id, token) for sequence, token in new])
    told = () if sampled.logprobs is None else _told(plan, new, sampled)
    on_device = None if timer is None else timer.seconds
    forced = _forced(plan, tokens, sampled) if sampled.forced else ()
    return StepDone(plan.step, tokens, seconds, blocks.num_free, computed, told, on_device, forced)


def _forced(
    plan: StepPlan, tokens: tuple[tuple[int, int], ...], sampled: SampledTokens
) -> tuple[int, ...]:
    """Return the places of new tokens that a grammar left no choice about: of a row with a draft,
    the one after it."""
    rows = [plan.sampled[place] for place in sampled.forced]
    numbers = {plan.sequences[row].sequence_id for row in rows}
    last = {number: place for place, (number, _) in enumerate(tokens)}
    return tuple(sorted(place for number, place in last.items() if number in numbers))


def _told(
    plan: StepPlan, new: list[tuple[Sequence, int]], sampled: SampledTokens
) -> tuple[tuple[float, tuple[tuple[int, float], ...]] | None, ...]:
    """Return what is reported of each new token."""
    entries: dict[int, Iterator[TokenLogprobs | None]] = {}
    for place, (row, entry) in enumerate(zip(plan.sampled, sampled.logprobs or (), strict=True)):
        run = sampled.accepted.get(place)
        before = () if run is None else run.logprobs or (None,) * len(run.token_ids)
        entries[plan.sequences[row].sequence_id] = iter((*before, entry))
    found = [next(entries[sequence.sequence_id]) for sequence, _ in new]
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
