"""`Control`: how deep drafts are in each step, from what steps have cost and how much was accepted.

A ledger keeps the promise that speculation costs at most a small share over plain decoding: each
drafted step books its time less what its tokens would have cost plainly, and while the sum exceeds
`max_slowdown` of all time spent, nothing is drafted. Depths are tried only out of what that leaves;
one that is measured to pay is used. Times are looked up by load, rounded up to a power of two.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Any

from workbench.describe import Described
from workbench.speculation.config import SpeculationConfig

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_WINDOW = 16  # latest times of a load and depth that count
_FEWEST = 4  # plain steps that must be measured before anything is drafted
_DECAY = 0.95  # of what is known about acceptance, per drafted step
_PROBE = 32  # drafted steps between two plain ones, and steps between two tries of another depth


class Control(Described):
    """Decides on the depth of one engine's drafts, by its `SpeculationConfig`."""

    def __init__(self, config: SpeculationConfig) -> None:
        self.config = config
        self.total = 0.0  # seconds of all steps seen
        self.debt = 0.0  # seconds that drafted steps took beyond plain ones for their tokens
        self._times: dict[tuple[int, int], deque[float]] = {}
        self._made: dict[int, float] = {}  # depth -> tokens of drafted rows, decayed
        self._rows: dict[int, float] = {}
        self._drafted = self._accepted = 0.0  # tokens, decayed
        self._steps = 0

    def depth(self, num_sequences: int) -> int:
        """Return how deep the next step's drafts may be; 0: none."""
        bound = self.config.depth(num_sequences)
        if bound < 1:
            return 0
        self._steps += 1
        if self._too_few_accepted():
            return bound if self._steps % _PROBE == 0 else 0
        return self._measured(num_sequences, bound) if self.config.adaptive else bound

    def observe(
        self,
        num_sequences: int,
        depth: int,
        num_tokens: int,
        drafted: int,
        accepted: int,
        seconds: float,
    ) -> None:
        """Take a step in: of `num_sequences` rows, all decoding, that made `num_tokens`.

        depth: what `depth` said (0: nothing was drafted); drafted, accepted: draft tokens; seconds:
        of the whole step.
        """
        load = _rounded(num_sequences)
        self.total += seconds
        if drafted:
            self._drafted = _DECAY * self._drafted + drafted
            self._accepted = _DECAY * self._accepted + accepted
        if depth:
            self._made[depth] = _DECAY * self._made.get(depth, 0.0) + num_tokens
            self._rows[depth] = _DECAY * self._rows.get(depth, 0.0) + num_sequences
            plain = self.step_time(num_sequences, 0)
            if plain is not None:
                self.debt += seconds - plain * num_tokens / num_sequences
                # Gains are no licence to lose them later: the promise holds at any time.
                self.debt = max(self.debt, 0.0)
        self._times.setdefault((load, depth), deque(maxlen=_WINDOW)).append(seconds)

    def step_time(self, num_sequences: int, depth: int) -> float | None:
        """Return the median time of a step of this load and depth, in seconds; None: not known."""
        times = self._times.get((_rounded(num_sequences), depth))
        return median(times) if times else None

    def tokens_per_row(self, depth: int) -> float | None:
        """Return how many tokens a sequence makes in a step of this depth; None: not known."""
        rows = self._rows.get(depth, 0.0)
        return self._made[depth] / rows if rows else None

    def _too_few_accepted(self) -> bool:
        least = self.config.min_acceptance
        return least > 0 and self._drafted > 0 and self._accepted < least * self._drafted

    def _measured(self, num_sequences: int, bound: int) -> int:
        plain = self.step_time(num_sequences, 0)
        times = self._times.get((_rounded(num_sequences), 0), ())
        if plain is None or len(times) < _FEWEST or self._steps % _PROBE == 0:
            return 0
        allowance = self.config.max_slowdown * (self.total - self.debt) - self.debt
        if allowance < 0:
            return 0
        depths = [d for d in DEPTHS if d < bound] + [bound]
        speeds = {d: self._speed(num_sequences, d) for d in depths}
        tried = [d for d in depths if speeds[d] is not None]
        again = depths[self._steps // _PROBE % len(depths)] if self._steps % _PROBE == 16 else None
        for depth in (again, next((d for d in depths if speeds[d] is None), None)):
            if depth is not None and self._risk(num_sequences, depth, tried, plain) <= allowance:
                return depth
        best = max(tried, key=lambda d: speeds[d] or 0.0, default=None)
        return best if best is not None and (speeds[best] or 0.0) > 1 / plain else 0

    def _risk(self, num_sequences: int, depth: int, tried: list[int], plain: float) -> float:
        """Return how long a step of this depth may be beyond a plain one, by the depths known.

        Of the first there is nothing known: as long as a plain step, then.
        """
        if not tried:
            return plain
        nearest = min(tried, key=lambda d: abs(d - depth))
        known = self.step_time(num_sequences, nearest) or plain
        return max(0.0, known - plain) * max(1.0, depth / nearest)

    def _speed(self, num_sequences: int, depth: int) -> float | None:
        """Return tokens per second and sequence at a depth; None: not known."""
        time, tokens = self.step_time(num_sequences, depth), self.tokens_per_row(depth)
        return None if time is None or tokens is None else tokens / time

    def describe(self) -> dict[str, Any]:
        """Return what was measured."""
        share = f"{self.debt / self.total:+.1%}" if self.total else "nothing yet"
        rate = f"{self._accepted / self._drafted:.0%}" if self._drafted else "nothing yet"
        return {"accepted lately": rate, "time lost": share}


def _rounded(num_sequences: int) -> int:
    return 1 << (num_sequences - 1).bit_length()
