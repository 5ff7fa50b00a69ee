"""The random decisions of verification: accept with a probability, draw from a distribution.

Rules ask a `Chance` and know nothing of seeds, so that a test can go through all outcomes with
their exact probabilities. `SeededChance` decides by a request's seed and place, whatever the batch.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

# splitmix64 (Steele, Lea and Flood 2014); the same function as in `workbench.sample.random`.
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ALL = 2**64 - 1
_VERIFYING = 0x56455249


class Chance(Protocol):
    """Decides for a rule."""

    def accepts(self, probability: float) -> bool:
        """Return True with this probability; 1 and more always, 0 and less never."""

    def draws(self, weights: Tensor) -> int:
        """Return a token drawn in proportion to weights [V], float64, none negative."""


class SeededChance:
    """Decisions that follow from a seed and the number of output tokens before them."""

    def __init__(self, seed: int, num_output_tokens: int) -> None:
        self._key = hashed(seed, _VERIFYING, num_output_tokens)
        self._count = 0

    def _uniform(self) -> float:
        self._count += 1
        return (_mix(self._key + self._count * _GOLDEN) >> 11) * 2.0**-53

    def accepts(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._uniform() < probability

    def draws(self, weights: Tensor) -> int:
        """Return a token drawn in proportion to weights [V]; never one of weight 0."""
        cumulative = weights.cumsum(0)
        target = self._uniform() * cumulative[-1]
        token = int(torch.searchsorted(cumulative, target, right=True))
        # Rounding may carry the target to the sum itself: then it is the last token of any weight.
        return token if token < len(weights) else int(weights.nonzero()[-1:].sum())


def hashed(*parts: int) -> int:
    """Return 64 bits that depend on every bit of these whole numbers."""
    state = 0
    for part in parts:
        state = _mix(state + (part & _ALL) + _GOLDEN)
        state = _mix(state + (part >> 64 & _ALL))
    return state


def _mix(x: int) -> int:
    x &= _ALL
    x = ((x ^ x >> 30) * _MIX_1) & _ALL
    x = ((x ^ x >> 27) * _MIX_2) & _ALL
    return x ^ x >> 31
