"""`States`: what the target model made of tokens on the way, kept for proposers that build on it.

The runner captures rows of a pass's tokens at the points that a proposer needs; those that were
committed are kept here, sequence by sequence, until the proposer is asked next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class RowSlices(Mapping[str, Tensor]):
    """Rows `begin` to `end` of tensors that hold many sequences', sliced when asked for."""

    def __init__(self, whole: Mapping[str, Tensor], begin: int, end: int) -> None:
        self.whole, self.begin, self.end = whole, begin, end

    def __getitem__(self, point: str) -> Tensor:
        """Return the rows at a point."""
        return self.whole[point][self.begin : self.end]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the points."""
        return iter(self.whole)

    def __len__(self) -> int:
        """The number of points."""
        return len(self.whole)


class States(NamedTuple):
    """Rows of consecutive tokens of a sequence: of position `start` and those after it.

    rows: [n, …] by point, on the model's device. The last row is of the last computed position,
    the one before the token that the draft follows. `start` is above the positions that the
    proposer has seen where tokens were found in the prefix cache, so that nothing was computed.
    """

    start: int
    rows: Mapping[str, Tensor]

    @property
    def stop(self) -> int:
        """The position after the last row."""
        rows = self.rows
        if isinstance(rows, RowSlices):
            return self.start + rows.end - rows.begin
        return self.start + len(next(iter(rows.values())))

    def part(self, begin: int, end: int) -> States:
        """Return the rows of positions `begin` to `end`."""
        first, last = begin - self.start, end - self.start
        if first == 0 and end == self.stop:
            return self
        if isinstance(self.rows, RowSlices):
            at = self.rows.begin
            return States(begin, RowSlices(self.rows.whole, at + first, at + last))
        return States(begin, {point: rows[first:last] for point, rows in self.rows.items()})


def packed(states: Sequence[States], points: Sequence[str]) -> Tensor:
    """Return the rows of several, one after the other, points side by side: [T, sum of widths]."""
    rows = [one.rows for one in states]
    whole = _run_of(rows)
    if whole is not None:
        columns = [whole[point] for point in points]
    else:
        columns = [torch.cat([one[point] for one in rows]) for point in points]
    return torch.cat(columns, dim=-1) if len(columns) > 1 else columns[0]


def _run_of(rows: Sequence[Mapping[str, Tensor]]) -> RowSlices | None:
    """Return slices that follow each other in one tensor as one slice; None for others."""
    slices = [one for one in rows if isinstance(one, RowSlices)]
    if len(slices) < len(rows):
        return None
    first, last = slices[0], slices[-1]
    ends = [first.begin, *(one.end for one in slices)]
    if any(
        one.whole is not first.whole or one.begin != end
        for one, end in zip(slices, ends, strict=False)
    ):
        return None
    return RowSlices(first.whole, first.begin, last.end)


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
