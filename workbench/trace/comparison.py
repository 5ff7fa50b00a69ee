"""`Comparison`: two traces of the same requests, side by side.

Made by `compare`, or from two finished traces. Requests are paired by id and branch; of one that
was restored, the last run counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from workbench.describe import Described, rows_table
from workbench.events import (
    BlockEvicted,
    Preempted,
    PrefixHit,
    PrefixMiss,
    SequenceExtended,
    StepDone,
)
from workbench.trace.comparison_figure import Compared, comparison_figure
from workbench.trace.pairs import Divergence, Pair, margin
from workbench.trace.tokens import SequenceLog
from workbench.trace.trace import Trace


class RunFigures(NamedTuple):
    """One run in numbers. Times in seconds, medians over its outputs; None where there are none."""

    outputs: int
    tokens: int
    steps: int
    seconds: float
    tokens_per_second: float | None
    ttft: float | None
    tpot: float | None
    hit_tokens: int
    missed_tokens: int
    evictions: int
    preemptions: int
    peak_blocks: int | None

    @classmethod
    def of(cls, trace: Trace, logs: Sequence[SequenceLog]) -> RunFigures:
        """Read them off a trace, whose outputs are `logs`."""
        done, hits = trace.of(StepDone), trace.of(PrefixHit)
        misses = trace.of(PrefixMiss)
        tokens = sum(len(step.tokens) for step in done) + len(trace.of(SequenceExtended))
        seconds = trace.seconds[-1] - trace.seconds[0] if trace.seconds else 0.0
        free = min((step.num_free_blocks for step in done), default=None)
        hit = sum(event.num_tokens for event in hits)
        asked = sum(event.num_prompt_tokens for event in hits)
        asked += sum(event.num_prompt_tokens for event in misses)
        return cls(
            outputs=len(logs),
            tokens=tokens,
            steps=len(done),
            seconds=seconds,
            tokens_per_second=tokens / seconds if seconds else None,
            ttft=_median([log.ttft for log in logs]),
            tpot=_median([log.tpot for log in logs]),
            hit_tokens=hit,
            missed_tokens=asked - hit,
            evictions=sum(e.for_sequence_id is not None for e in trace.of(BlockEvicted)),
            preemptions=len(trace.of(Preempted)),
            peak_blocks=None if free is None else trace.layout.num_blocks - free,
        )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


class Comparison(Described):
    """Two traces: `pairs` of outputs in order of arrival, and the `figures` of each run.

    only_a, only_b: outputs that the other run has not. Beams that fell out of a search, or were
    taken over by others, are left out: a trace does not hold a search's final choice.
    """

    def __init__(self, a: Trace, b: Trace, names: tuple[str, str] = ("a", "b")) -> None:
        self.a, self.b, self.names = a, b, names
        logs_a, logs_b = _outputs(a), _outputs(b)
        self.pairs = [Pair.of(log, logs_b[key]) for key, log in logs_a.items() if key in logs_b]
        self.only_a = [log for key, log in logs_a.items() if key not in logs_b]
        self.only_b = [log for key, log in logs_b.items() if key not in logs_a]
        each = (a, logs_a), (b, logs_b)
        self.figures = tuple(RunFigures.of(trace, list(logs.values())) for trace, logs in each)

    @property
    def identical(self) -> bool:
        """Whether both runs made the same outputs, token for token."""
        return not (self.diverging or self.only_a or self.only_b)

    @property
    def diverging(self) -> list[Pair]:
        """The outputs that differ, earliest divergence first."""
        found = [pair for pair in self.pairs if pair.divergence is not None]
        return sorted(found, key=lambda pair: pair.divergence.position if pair.divergence else 0)

    def figure(self) -> Any:
        """Return both runs side by side as a plotly figure: tokens with the first divergences
        marked, log-probabilities, latencies, blocks in use; `MissingExtra` without plotly."""
        first = self.describe()["first divergence"]
        same = "the same tokens" if self.identical else f"first divergence: {first}"
        title = f"{self.names[0]} and {self.names[1]}: {same}"
        agreeing = [pair for pair in self.pairs if pair.divergence is None]
        lists = [*self.diverging, *agreeing], self.only_a, self.only_b
        told = Compared(self.a, self.b, self.names, *lists, title, self._repr_html_())
        return comparison_figure(told)

    def describe(self) -> dict[str, Any]:
        """Return how much differs."""
        first = self.diverging[0] if self.diverging else None
        where = "-"
        if first is not None and first.divergence is not None:
            where = f"{first.request_id}, output token {first.divergence.position}"
        return {
            "runs": " and ".join(self.names),
            "outputs": len(self.pairs),
            "identical": self.identical,
            "differ": len(self.diverging),
            "first divergence": where,
            "only in one": len(self.only_a) + len(self.only_b),
        }

    def _repr_html_(self) -> str:
        return self._figures_table() + self._pairs_table()

    def _figures_table(self) -> str:
        one, other = self.figures
        rows = []
        for name, value_a, value_b in zip(RunFigures._fields, one, other, strict=True):
            unit = name in ("seconds", "ttft", "tpot")
            shown = [_ms(value) if unit else value for value in (value_a, value_b)]
            label = name.replace("_", " ") + (" (ms)" if unit else "")
            rows.append((label, *["-" if value is None else value for value in shown]))
        return rows_table("two runs of one workload", ("", *self.names), rows)

    def _pairs_table(self) -> str:
        a, b = self.names
        header = (
            *("request", "branch", "tokens " + a, "tokens " + b, "diverges at"),
            *(f"{a}: token, logprob, margin", f"{b}: token, logprob, margin"),
            *("largest logprob gap before", f"TTFT ms {a} | {b}", f"TPOT ms {a} | {b}"),
        )
        rows: list[tuple[Any, ...]] = [
            (
                *(pair.request_id, pair.branch, len(pair.a.tokens), len(pair.b.tokens)),
                "-" if pair.divergence is None else f"▶ {pair.divergence.position}",
                *self._at(pair.divergence),
                "-" if pair.max_logprob_gap is None else pair.max_logprob_gap,
                f"{_shown(pair.a.ttft)} | {_shown(pair.b.ttft)}",
                f"{_shown(pair.a.tpot)} | {_shown(pair.b.tpot)}",
            )
            for pair in self.pairs
        ]
        rows += [
            (log.request_id, log.branch, *("only in " + name, "", "", "", "", "", "", ""))
            for name, logs in zip(self.names, (self.only_a, self.only_b), strict=True)
            for log in logs
        ]
        return rows_table("outputs", header, rows)

    def _at(self, divergence: Divergence | None) -> tuple[str, str]:
        """Return both runs' tokens at the divergence, in words."""
        if divergence is None:
            return "", ""
        shown = []
        for trace, token in ((self.a, divergence.token_a), (self.b, divergence.token_b)):
            if token is None:
                shown.append("ended")
                continue
            numbers = [token.logprob, margin(token)]
            told = ", ".join("-" if value is None else f"{value:.4f}" for value in numbers)
            shown.append(f"{trace.text_of(token.token_id)!r} ({token.token_id}), {told}")
        return shown[0], shown[1]


def _outputs(trace: Trace) -> dict[tuple[str, int], SequenceLog]:
    """Return a trace's outputs by request and branch, those of a later run instead of earlier."""
    found: dict[tuple[str, int], SequenceLog] = {}
    for log in trace.sequences.values():
        if log.finish_reason != "dropped" and not any(t.maker == "chosen" for t in log.tokens):
            found[log.request_id, log.branch] = log
    return found


def _ms(seconds: Any) -> Any:
    return None if seconds is None else round(1e3 * seconds, 3)


def _shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f}"
