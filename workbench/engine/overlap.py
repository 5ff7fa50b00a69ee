"""`Overlap`: the next step's pass runs while the host takes this one's tokens in.

    pass n ──────────────┐ pass n+1 ────────────┐        GPU
      start n+1, wait n ─┘ commit n, schedule n+1, start n+2, wait n+1 ─┘   host

Used by `Engine.advance`. What is started ahead is only ever a guess at the next plan, which is made
as ever: rows of it that were guessed find their tokens drawn, others are run beside them, and what
nobody wants is dropped. So no sequence, queue or cached block knows of it, and tokens are the plain
loop's. It holds one pass at most.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.batch import Backend, StepPlan
from workbench.describe import Described
from workbench.engine.record import Laps
from workbench.engine.speculator import Speculator
from workbench.errors import ConfigError
from workbench.request import Sequence, TokenLogprobs
from workbench.results import Drawing, ForwardOutput, PassTimer, SampledTokens, Settled
from workbench.run import Runner
from workbench.run.decodes import asks
from workbench.sample import Sampler
from workbench.sample.params import to_device
from workbench.scheduler import Foreseen, Scheduler


class Pass(NamedTuple):
    """What a forward pass gives out, and the tokens drawn from it."""

    output: ForwardOutput
    drawing: Drawing


class _Ahead(NamedTuple):
    """A pass that was started before its step, and who ran and drew it."""

    foreseen: Foreseen
    ran: Pass
    backend: Backend
    sampler: Sampler


@dataclass(frozen=True, slots=True)
class _Joined:
    """The drawings of a step that was run in two parts: some rows of the first, and a second."""

    first: Drawing
    rows: list[int]
    second: Drawing | None

    @property
    def tokens(self) -> Tensor | None:
        """Both parts' tokens; see `Drawing`."""
        tokens = self.first.tokens
        assert tokens is not None, "a pass ahead draws on the device"
        if self.rows != list(range(len(tokens))):
            tokens = _pick(tokens, self.rows)
        if self.second is None or self.second.tokens is None:
            return None if self.second is not None else tokens
        return torch.cat([tokens, self.second.tokens])

    @property
    def needs_host(self) -> str:
        """What the second part says: the first needs nothing."""
        return "" if self.second is None else self.second.needs_host

    def wait(self) -> SampledTokens:
        """Return the tokens of both."""
        first, rows = self.first.wait(), self.rows
        token_ids = [first.token_ids[row] for row in rows]
        errors = {i: first.errors[row] for i, row in enumerate(rows) if row in first.errors}
        if self.second is None:
            return SampledTokens(token_ids, None, errors)
        second, count = self.second.wait(), len(rows)
        errors |= {count + place: error for place, error in second.errors.items()}
        logprobs: list[TokenLogprobs | None] | None = None
        if second.logprobs is not None:
            logprobs = [*[None] * count, *second.logprobs]
        forced = frozenset(count + place for place in second.forced)
        return SampledTokens(token_ids + second.token_ids, logprobs, errors, forced=forced)


class _Both(NamedTuple):
    """The time of two passes."""

    timers: tuple[PassTimer, PassTimer]

    @property
    def seconds(self) -> float | None:
        """Their sum."""
        first, second = (timer.seconds for timer in self.timers)
        return None if first is None or second is None else first + second


class Overlap(Described):
    """The pass that was started ahead, if there is one.

    `on`: whether loops use it. `taken` and `dropped` count passes started ahead, by what became of
    them; `plain` counts the steps behind which nothing was started, by reason.
    """

    def __init__(
        self, overlap: object, scheduler: Scheduler, runner: Runner, speculator: Speculator
    ) -> None:
        """Raise `ConfigError` unless `overlap` is True, False or "auto": where it is a GPU."""
        check_overlap(overlap)
        self.on = runner.device.type == "cuda" if overlap == "auto" else bool(overlap)
        self.taken, self.dropped = 0, 0
        self.plain: Counter[str] = Counter()
        self._scheduler, self._runner, self._speculator = scheduler, runner, speculator
        self._ahead: _Ahead | None = None
        self._modest: list[Sequence] = []  # the latest rows that ask for nothing but tokens

    def run(self, plan: StepPlan, sampler: Sampler, laps: Laps) -> Pass:
        """Return a plan's pass under way: what was started ahead of it, or now."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            rows = self._rows(ahead, plan, sampler)
            if rows is not None:
                self.taken += 1
                return self._with_rest(ahead, rows, plan, sampler, laps)
            self._forget()
        if plan:
            return self._start(plan, sampler, laps)
        laps.lap("run")
        return Pass(ForwardOutput(), Settled(SampledTokens([]), "nothing ran"))

    def begin_next(self, plan: StepPlan, drawing: Drawing, sampler: Sampler) -> None:
        """Start the pass of the step after `plan`, if it is known what that will be."""
        if not plan:
            return
        why = self._why_plain(plan, drawing)
        if not why:
            foreseen = self._scheduler.foresee(plan)
            if isinstance(foreseen, Foreseen):
                tokens = drawing.tokens
                assert tokens is not None, "`needs_host` was asked"
                if len(foreseen.sources) < len(tokens):
                    tokens = _pick(tokens, foreseen.sources)
                foreseen.plan.unread = tokens
                backend = self._runner.backend
                ran = self._start(foreseen.plan, sampler)
                self._ahead = _Ahead(foreseen, ran, backend, sampler)
                return
            why = foreseen
        self.plain[why] += 1

    def drop(self) -> None:
        """Let go of a pass that was started ahead, and of the blocks it was given."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self._forget()
            with self._scheduler.books.open("dropping a pass"):
                self._scheduler.foresight.retract(ahead.foreseen)

    def close(self) -> None:
        """Let go of the pass and the parts."""
        self._ahead, self._modest = None, []
        del self._scheduler, self._runner, self._speculator

    def _forget(self) -> None:
        self.dropped += 1
        self._runner.forget_inputs()

    def _start(self, plan: StepPlan, sampler: Sampler, laps: Laps | None = None) -> Pass:
        output = self._runner.run(plan)
        if laps is not None:
            laps.lap("run")
        return Pass(output, self._speculator.draw(plan, output, sampler))

    def _why_plain(self, plan: StepPlan, drawing: Drawing) -> str:
        """Return why the next pass may not begin before this step's tokens are seen."""
        if not self._speculator.pauses(len(plan.sequences)):
            return "there is a proposer"
        why = drawing.needs_host or self._runner.why_plain()
        if why:
            return why
        if plan.sequences != self._modest:
            if any(asks(sequence) for sequence in plan.sequences):
                return "a row brings embeddings or asks for more than tokens"
            self._modest = list(plan.sequences)
        return ""

    def _rows(self, ahead: _Ahead, plan: StepPlan, sampler: Sampler) -> list[int] | None:
        """Return which rows of a pass are a plan's decodes; None if it cannot stand for these."""
        if ahead.sampler is not sampler or ahead.backend is not self._runner.backend:
            return None
        if plan.drafts or self._runner.why_plain():
            return None
        if self._scheduler.drops:
            return None
        return self._scheduler.foresight.match(ahead.foreseen, plan)

    def _with_rest(
        self, ahead: _Ahead, rows: list[int], plan: StepPlan, sampler: Sampler, laps: Laps
    ) -> Pass:
        """Return a pass that was started ahead as a plan's, with what else the plan computes."""
        output, drawing = ahead.ran
        count = plan.num_decodes
        if count == len(plan.sequences):
            laps.lap("run")
            if rows == list(range(len(ahead.foreseen.plan.sequences))):
                return ahead.ran
            output = ForwardOutput(states=_states(output, rows), timer=output.timer)
            return Pass(output, _Joined(drawing, rows, None))
        rest = self._start(plan.behind_decodes(), sampler, laps)
        reports = {count + row: report for row, report in rest.output.reports.items()}
        states = _states(output, rows, rest.output)
        joined = ForwardOutput(None, reports, states, _both(output.timer, rest.output.timer))
        return Pass(joined, _Joined(drawing, rows, rest.drawing))

    @property
    def summary(self) -> str:
        """How it went so far, in a line."""
        if not self.on:
            return "off"
        usual = self.plain.most_common(1)
        why = f" (mostly: {usual[0][0]})" if usual else ""
        counts = f"{self.taken} passes taken, {self.dropped} dropped"
        return f"{counts}, {sum(self.plain.values())} steps plain{why}"

    def describe(self) -> dict[str, Any]:
        """Return whether loops start passes ahead, how that went, and why steps were plain."""
        return {
            "on": self.on,
            "started ahead": f"{self.taken} taken, {self.dropped} dropped",
            "plain because": dict(self.plain),
        }


def check_overlap(overlap: object) -> None:
    """Raise `ConfigError` unless it is a choice."""
    if not isinstance(overlap, bool) and overlap != "auto":
        raise ConfigError("overlap", overlap, "no such choice", 'Use "auto", True or False.')


def _both(first: PassTimer | None, second: PassTimer | None) -> PassTimer | None:
    return None if first is None or second is None else _Both((first, second))


def _states(
    first: ForwardOutput, rows: list[int], rest: ForwardOutput | None = None
) -> dict[str, Tensor]:
    """Return what is kept of some rows of a pass of decodes, and of all tokens of another."""
    parts = [{point: _pick(whole, rows) for point, whole in first.states.items()}]
    if rest is not None:
        parts.append(rest.states)
    points = parts[0].keys() & parts[-1].keys()  # where a pass kept nothing, nothing is known
    return {point: torch.cat([part[point] for part in parts]) for point in points}


def _pick(tokens: Tensor, places: list[int]) -> Tensor:
    return tokens[to_device(torch.tensor(places), tokens.device)]
