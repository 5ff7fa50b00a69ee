"""`Facts`: where the manager's parts state what happens to adapters, with the step it happens in.

One for a manager and its parts; the engine puts its bus into it. With no listener it costs nothing.
"""

from __future__ import annotations

from typing import Any

from workbench.events import Event, EventBus


class Facts:
    """The bus, and the engine's step."""

    def __init__(self) -> None:
        self.bus = EventBus()
        self.step = 0

    def tell(self, kind: type[Event], *facts: Any) -> None:
        """State a fact: an event's fields after its step."""
        if self.bus:
            self.bus.emit(kind(self.step, *facts))
