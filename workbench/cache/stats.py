"""What a cache has done since it was made: counters, and a frozen copy of them for a reader.

Counting costs an addition where it happens; nothing is computed until `KVCache.stats()` is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.describe import Described


@dataclass(slots=True)
class CacheCounters:
    """Running counts, each with one writer.

    The scheduler's queues write `lookups`, `hit_tokens` and `missed_tokens` (once per admission)
    and the two kinds of preemption; the block managers `copies` and `dropped`, their pools the
    rest. A model's KV
    groups count in one of these.
    """

    lookups: int = 0
    hit_tokens: int = 0
    missed_tokens: int = 0
    evictions: int = 0
    copies: int = 0
    used: int = 0
    peak_used: int = 0
    recomputed: int = 0
    swapped: int = 0
    dropped: int = 0

    def block_used(self) -> None:
        """Note that a free block is in use now."""
        self.used += 1
        if self.used > self.peak_used:
            self.peak_used = self.used


@dataclass(frozen=True, slots=True, repr=False)
class CacheStats(Described):
    """A cache's history in numbers.

    lookups: sequences that looked for their tokens when they were started; hit_tokens and
    missed_tokens: what they found and what they had to compute. evictions, copies (on write),
    offloads and restores count blocks, and so does dropped: what dropping policies took out of
    tables. recomputed and swapped: preemptions by kind. used and peak_used: the blocks in use now,
    and the most that were at once.
    """

    lookups: int
    hit_tokens: int
    missed_tokens: int
    evictions: int
    offloads: int
    restores: int
    copies: int
    recomputed: int
    swapped: int
    dropped: int
    used: int
    peak_used: int

    @property
    def hit_rate(self) -> float:
        """The share of looked-up tokens that were found; 0 before the first lookup."""
        asked = self.hit_tokens + self.missed_tokens
        return self.hit_tokens / asked if asked else 0.0

    def describe(self) -> dict[str, Any]:
        """Return the numbers and the rate."""
        numbers = {name: getattr(self, name) for name in self.__slots__}
        return {**numbers, "hit_rate": round(self.hit_rate, 4)}
