"""How far a run has come, and the learning rate that follows from it.

Called by the training loop. Progress is a number from 0 to 1 that only ever grows, over as many
calls as the run takes; a changed budget changes how fast it grows and never makes it jump.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """The part of the budget used: `fraction` in [0, 1], with the seconds and tokens behind it."""

    fraction: float = 0.0
    seconds: float = 0.0
    tokens: int = 0

    def advance_seconds(self, seconds: float, rate: float) -> None:
        """Count wall time; `rate` is fraction per second."""
        self.seconds += seconds
        self.fraction = min(1.0, self.fraction + seconds * rate)

    def advance_tokens(self, tokens: int, max_tokens: int) -> None:
        """Count tokens against a token budget."""
        self.fraction = min(1.0, (self.tokens + tokens) / max_tokens)

    @property
    def done(self) -> bool:
        """Whether the budget is used up."""
        return self.fraction >= 1.0


def fraction_per_second(progress: Progress, seconds_total: float, seconds_left: float) -> float:
    """How fast progress grows in this call, such that the budget ends where it should.

    `seconds_total` is the whole run's budget; `seconds_left` bounds what may still be used (it is
    infinite if later calls can follow).
    """
    remaining = max(1e-9, min(seconds_total - progress.seconds, seconds_left))
    return (1.0 - progress.fraction) / remaining


def learning_rate(fraction: float, peak: float, warmup: float = 0.01, final: float = 0.0) -> float:
    """Linear warm-up over the first `warmup` of the budget, then a cosine down to `final`."""
    if fraction < warmup:
        return peak * max(fraction, warmup / 50) / warmup
    position = (fraction - warmup) / (1.0 - warmup)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, position)))
