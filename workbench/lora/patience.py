"""`Patience`: no sequence waits for its adapter for ever.

Adapters that are on the device serve those who name them at once, which is quick and unfair: others
might never find room. Who was refused in `LIMIT` steps gets the room kept: until it starts, no
sequence with an adapter does, so that what runs ends and leaves its rows. Used by the manager.
"""

from __future__ import annotations

from workbench.request import Sequence, Status

LIMIT = 32


class Patience:
    """Counts how often each waiting sequence was refused."""

    def __init__(self) -> None:
        self._refusals: dict[int, tuple[Sequence, int]] = {}
        self._first: Sequence | None = None

    def begin(self) -> None:
        """Begin a step: forget who no longer waits."""
        if self._refusals:
            waiting = self._refusals.items()
            self._refusals = {k: v for k, v in waiting if v[0].status is Status.WAITING}
        if self._first is not None and self._first.sequence_id not in self._refusals:
            self._first = None

    def reserved_for_another(self, sequence: Sequence) -> bool:
        """Whether room is kept for somebody else."""
        return self._first is not None and self._first is not sequence

    def refused(self, sequence: Sequence) -> None:
        """Note that there was no room for a sequence's adapters."""
        count = self._refusals.get(sequence.sequence_id, (sequence, 0))[1] + 1
        self._refusals[sequence.sequence_id] = sequence, count
        if count >= LIMIT and self._first is None:
            self._first = sequence

    def admitted(self, sequence: Sequence) -> None:
        """Note that a sequence's adapters are there."""
        self._refusals.pop(sequence.sequence_id, None)
        if self._first is sequence:
            self._first = None
