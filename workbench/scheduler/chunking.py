"""How a step's token budget is shared by the prompts that are being computed.

Three ways, chosen by `SchedulerConfig.chunking` and `chunked_prefill`, all in plain numbers: what
each prompt lacks, and the budget that decodes have left. Asked by the planner.
"""

from __future__ import annotations

from typing import Protocol

from workbench.config import SchedulerConfig


class Sharing(Protocol):
    """A way to share a budget of tokens."""

    def claim(self, lack: int) -> int:
        """Return how many tokens a prompt must be able to get before a further one may join."""

    def joins(self, lack: int, left: int, first: bool) -> bool:
        """Whether a prompt may join where `left` tokens are unclaimed; `first`: there is none."""

    def share(self, lacking: list[int], budget: int) -> list[int]:
        """Return how many tokens each gets, of those that it lacks."""


class FirstCome:
    """One after the other: each gets all it lacks, the last one a chunk of it."""

    def claim(self, lack: int) -> int:
        """All it lacks."""
        return lack

    def joins(self, lack: int, left: int, first: bool) -> bool:
        """A chunk of one token is enough."""
        return left > 0

    def share(self, lacking: list[int], budget: int) -> list[int]:
        """Serve in order."""
        shares: list[int] = []
        for lack in lacking:
            shares.append(max(0, min(lack, budget)))
            budget -= shares[-1]
        return shares


class EqualProgress:
    """All at once: each gets the same number, and what the short ones leave goes to the longer."""

    def claim(self, lack: int) -> int:
        """One token, if it lacks any."""
        return min(lack, 1)

    def joins(self, lack: int, left: int, first: bool) -> bool:
        """A chunk of one token is enough."""
        return left > 0

    def share(self, lacking: list[int], budget: int) -> list[int]:
        """Serve the shortest first, from equal parts of what is left; odd tokens go to the first in
        order."""
        shares = [0] * len(lacking)
        longer = sorted(range(len(lacking)), key=lambda i: -lacking[i])
        while longer and lacking[longer[-1]] * len(longer) <= budget:
            i = longer.pop()
            shares[i] = lacking[i]
            budget -= lacking[i]
        for place, i in enumerate(sorted(longer)):
            shares[i] = budget // len(longer) + (place < budget % len(longer))
        return shares


class Whole:
    """Prompts are not split: one that exceeds the budget by itself runs when no other does."""

    def claim(self, lack: int) -> int:
        """All it lacks."""
        return lack

    def joins(self, lack: int, left: int, first: bool) -> bool:
        """All of it must fit, unless it is alone."""
        return left > 0 and (first or lack <= left)

    def share(self, lacking: list[int], budget: int) -> list[int]:
        """Serve in order, all or nothing."""
        shares: list[int] = []
        for lack in lacking:
            fits = self.joins(lack, budget, not any(shares))
            shares.append(lack if fits else 0)
            budget -= shares[-1]
        return shares


def sharing(config: SchedulerConfig) -> Sharing:
    """Return the way that the settings ask for."""
    if not config.chunked_prefill:
        return Whole()
    return EqualProgress() if config.chunking == "equal_progress" else FirstCome()
