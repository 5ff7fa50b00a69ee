"""`Activations`: what a sequence keeps of the model's inside, one row per token it has computed.

Kept where a request asks for `hidden_states` or `activations`: filled by the scheduler when it
commits a step, read by `Engine.output`. Rows are only ever added: a preempted sequence computes its
tokens again, and what was kept of them stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from workbench.describe import Described

if TYPE_CHECKING:
    from torch import Tensor


class Activations(Described):
    """Rows of a sequence's first `num_positions` tokens, at each of `points`, on the CPU.

    A point is a module's name (see `workbench.layers.probe`); "" is the model itself, whose output
    are the hidden states after the final norm.
    """

    def __init__(self, points: Iterable[str]) -> None:
        self.num_positions = 0
        self._parts: dict[str, list[Tensor]] = {point: [] for point in points}

    @property
    def points(self) -> tuple[str, ...]:
        """Where rows are taken."""
        return tuple(self._parts)

    def extend(self, rows: Mapping[str, Tensor]) -> None:
        """Add the rows of the next positions: [n, …] for each point, with one n."""
        assert rows.keys() == self._parts.keys(), "rows of every point, and of no other"
        [count] = {len(part) for part in rows.values()}
        for point, part in rows.items():
            self._parts[point].append(part)
        self.num_positions += count

    def tensor(self, point: str, num_positions: int | None = None) -> Tensor | None:
        """Return a copy of the rows at a point, [num_positions or fewer, …]; None before any.

        An ordinary tensor, also where the parts were made in inference mode: one to train on.
        """
        import torch

        parts = self._parts[point]
        if not parts:
            return None
        with torch.inference_mode(False):
            return torch.cat(parts)[:num_positions]

    def first(self, num_positions: int, points: Iterable[str]) -> Activations:
        """Return a copy of the first rows, of some of the points (for a forked sequence)."""
        twin = Activations(points)
        rows = {point: self.tensor(point, num_positions) for point in twin.points}
        found = {point: part for point, part in rows.items() if part is not None}
        if found:
            twin.extend(found)
        return twin

    def copy(self) -> Activations:
        """Return an independent copy (for a checkpoint of the engine)."""
        return self.first(self.num_positions, self.points)

    def state(self) -> dict[str, Tensor | None]:
        """Return the rows by point, as plain tensors; None where there are none yet."""
        return {point: self.tensor(point) for point in self.points}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor | None]) -> Activations:
        """Return what `state()` was taken of."""
        restored = cls(state)
        found = {point: part for point, part in state.items() if part is not None}
        if found:
            restored.extend(found)
        return restored

    def describe(self) -> dict[str, str | int]:
        """Return the points and how far they are filled."""
        return {"points": ", ".join(map(repr, self.points)), "positions": self.num_positions}
