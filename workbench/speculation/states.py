"""`States`: what the target model made of tokens on the way, kept for proposers that build on it.

The runner captures rows of a pass's tokens at the points that a proposer needs; those that were
committed are kept here, sequence by sequence, until the proposer is asked next.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class States(NamedTuple):
    """Rows of consecutive tokens of a sequence: of position `start` and those after it.

    rows: [n, …] by point, on the model's device. The last row is of the last computed position,
    the one before the token that the draft follows. `start` is above the positions that the
    proposer has seen where tokens were found in the prefix cache, so that nothing was computed.
    """

    start: int
    rows: dict[str, Tensor]

    @property
    def stop(self) -> int:
        """The position after the last row."""
        return self.start + len(next(iter(self.rows.values())))


class StateStore:
    """The rows of each sequence that nobody has taken yet."""

    def __init__(self) -> None:
        self._parts: dict[int, list[States]] = {}

    def add(self, sequence_id: int, part: States) -> None:
        """Keep a sequence's rows; older ones that do not lead up to them are dropped."""
        parts = self._parts.setdefault(sequence_id, [])
        if parts and parts[-1].stop != part.start:
            parts.clear()
        parts.append(part)

    def take(self, sequence_id: int) -> States | None:
        """Hand a sequence's rows over; None if there are none."""
        parts = self._parts.pop(sequence_id, None)
        if not parts:
            return None
        if len(parts) == 1:
            return parts[0]
        points = parts[0].rows
        joined = {point: torch.cat([part.rows[point] for part in parts]) for point in points}
        return States(parts[0].start, joined)

    def drop(self, sequence_id: int) -> None:
        """Forget a sequence."""
        self._parts.pop(sequence_id, None)

    def clear(self) -> None:
        """Forget all."""
        self._parts.clear()

    def __len__(self) -> int:
        """Sequences with rows."""
        return len(self._parts)
