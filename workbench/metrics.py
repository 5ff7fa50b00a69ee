"""`RequestMetrics`: when a request came, ran and ended, and what it took.

Written by the scheduler on its sequences, shown in `RequestOutput.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class RequestMetrics:
    """Times (seconds of `time.monotonic`) and counts of one request."""

    arrival: float
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_output_tokens: int = 0

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
        )

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


def _earliest(times: Iterable[float | None]) -> float | None:
    return min((time for time in times if time is not None), default=None)
