"""`RequestMetrics`: when a request came, ran and ended, and what it took.

Written by the scheduler on its sequences, shown in `RequestOutput.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from workbench.describe import Described


@dataclass(slots=True, repr=False)
class RequestMetrics(Described):
    """Times (seconds of `time.monotonic`) and counts of one request; what they make: `ttft`,
    `tpot`, `latency`, `queue` (seconds), `acceptance_length`, `acceptance_rates`.

    num_drafts: passes that verified a draft, of num_draft_tokens in all; accepted_at[i]: in how
    many of them the draft was right to a depth of i + 1. lossy: the rule that decided where that
    was not exact (the tokens are then not the model's own), empty elsewhere. proposer_error: why
    the request decodes plainly since.
    """

    arrival: float
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_output_tokens: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    accepted_at: tuple[int, ...] = ()
    lossy: str = ""
    proposer_error: str = ""

    def __post_init__(self) -> None:
        """Take a list as well, as it comes from a file."""
        self.accepted_at = tuple(self.accepted_at)

    def add_draft(self, num_tokens: int, num_accepted: int, lossy: str) -> None:
        """Count a pass that verified a draft, of which the first `num_accepted` became output."""
        self.lossy = lossy or self.lossy
        self.num_drafts += 1
        self.num_draft_tokens += num_tokens
        deeper = (0,) * (num_accepted - len(self.accepted_at))
        counts = self.accepted_at + deeper
        self.accepted_at = tuple(n + (i < num_accepted) for i, n in enumerate(counts))

    def branch(self) -> RequestMetrics:
        """Return the metrics that a branch begins with: the times so far, and nothing counted."""
        none = {"num_preemptions": 0, "num_drafts": 0, "num_draft_tokens": 0, "accepted_at": ()}
        return replace(self, **none)  # type: ignore[arg-type]

    @classmethod
    def over(cls, parts: list[RequestMetrics]) -> RequestMetrics:
        """Return the metrics of a request from those of its sequences.

        First and last times, cached tokens of the first sequence, all preemptions and tokens;
        `finished` is None while one of them runs.
        """
        ends = [part.finished for part in parts]
        return cls(
            arrival=min(part.arrival for part in parts),
            first_scheduled=_earliest(part.first_scheduled for part in parts),
            first_token=_earliest(part.first_token for part in parts),
            finished=None if None in ends else max(end for end in ends if end is not None),
            num_cached_tokens=parts[0].num_cached_tokens,
            num_preemptions=sum(part.num_preemptions for part in parts),
            num_output_tokens=sum(part.num_output_tokens for part in parts),
            num_drafts=sum(part.num_drafts for part in parts),
            num_draft_tokens=sum(part.num_draft_tokens for part in parts),
            accepted_at=tuple(
                map(sum, zip_longest(*(part.accepted_at for part in parts), fillvalue=0))
            ),
            lossy=next((part.lossy for part in parts if part.lossy), ""),
            proposer_error=next((p.proposer_error for p in parts if p.proposer_error), ""),
        )

    @property
    def num_accepted(self) -> int:
        """Draft tokens that became output."""
        return sum(self.accepted_at)

    @property
    def acceptance_length(self) -> float | None:
        """Mean tokens that a pass with a draft made, its own included; None where there was none.

        The field's tau: at least 1, at most 1 + the drafts' depth.
        """
        return None if self.num_drafts == 0 else 1 + self.num_accepted / self.num_drafts

    @property
    def acceptance_rates(self) -> tuple[float, ...]:
        """By depth, the share of drafts that were right so far: falling."""
        return tuple(count / self.num_drafts for count in self.accepted_at)

    @property
    def queue(self) -> float | None:
        """Seconds from arrival until first scheduled."""
        return None if self.first_scheduled is None else self.first_scheduled - self.arrival

    @property
    def ttft(self) -> float | None:
        """Seconds from arrival to the first token."""
        return None if self.first_token is None else self.first_token - self.arrival

    @property
    def tpot(self) -> float | None:
        """Mean seconds per output token after the first; None before it has two."""
        if self.finished is None or self.first_token is None or self.num_output_tokens < 2:
            return None
        return (self.finished - self.first_token) / (self.num_output_tokens - 1)

    @property
    def latency(self) -> float | None:
        """Seconds from arrival to the end."""
        return None if self.finished is None else self.finished - self.arrival

    def describe(self) -> dict[str, Any]:
        """Return what is known so far, times in milliseconds."""
        times = {"queued": self.queue, "TTFT": self.ttft, "TPOT": self.tpot, "in all": self.latency}
        facts: dict[str, Any] = {"output tokens": self.num_output_tokens}
        facts |= {f"{k} ms": round(1e3 * v, 2) for k, v in times.items() if v is not None}
        facts["cached prompt tokens"] = self.num_cached_tokens
        facts["preemptions"] = self.num_preemptions
        if self.acceptance_length is not None:
            rates = ", ".join(f"{rate:.0%}" for rate in self.acceptance_rates)
            facts["acceptance length"] = f"{self.acceptance_length:.2f} ({rates or 'none'})"
        notes = {"lossy rule": self.lossy, "proposer error": self.proposer_error}
        return facts | {label: note for label, note in notes.items() if note}


def _earliest(times: Iterable[float | None]) -> float | None:
    return min((time for time in times if time is not None), default=None)
