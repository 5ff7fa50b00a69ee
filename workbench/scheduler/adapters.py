"""`AdapterWaits`: waiting sequences whose LoRA adapters are not there yet are passed over.

The scheduler knows no adapter; `workbench.lora` answers as an `AdapterGate`, and the engine
introduces the two. Asked by the planner.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from workbench.errors import AdapterError
from workbench.request import Sequence
from workbench.scheduler.queues import Queues


class AdapterGate(Protocol):
    """Says who may start."""

    def begin(self, step: int, running: Collection[Sequence], waiting: Iterable[Sequence]) -> None:
        """Begin a step: `running` hold blocks, and keep their adapters on the device; `waiting`
        come next, in this order."""

    def admits(self, sequence: Sequence, *, wait: bool) -> bool:
        """Whether a sequence that names adapters may start now. wait: nothing else could run.

        Raises `AdapterError` if it never can.
        """


class AdapterWaits:
    """Asks the gate; `gate` is None where there are no adapters."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self.gate: AdapterGate | None = None
        self._lost: list[Sequence] = []

    def begin(self, step: int) -> None:
        """Begin a step."""
        if self.gate is not None:
            queues = self._queues
            holding = *queues.running.values(), *queues.holding.values()
            self.gate.begin(step, holding, queues.waiting)

    def holds(self, sequence: Sequence) -> bool:
        """Whether a sequence has to wait for its adapters."""
        if not sequence.request.lora or self.gate is None:
            return False
        try:
            return not self.gate.admits(sequence, wait=not self._queues.running)
        except AdapterError as error:
            sequence.error = str(error)
            self._lost.append(sequence)
            return True

    def end_lost(self) -> list[Sequence]:
        """End and return the sequences whose adapters turned out to be lost for good."""
        lost, self._lost = self._lost, []
        for sequence in lost:
            self._queues.finish(sequence, "error")
        return lost
