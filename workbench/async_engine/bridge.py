"""`OnLoop`: from the engine's thread to an event loop, newest wins.

A subscriber of `engine.bus` is called on the engine's thread, in the middle of a step, and holds it
up. `OnLoop` wraps one that belongs elsewhere, as everything does that touches a widget.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from workbench.events import Event


class OnLoop:
    """A subscriber that calls `callback(event)` on an event loop.

    However fast events come, at most one call into the loop is under way; when it gets there, it
    hands over the newest event of each kind and the older ones are dropped. What must be counted is
    counted by a subscriber of one's own. kinds: event types to pass on (none: all). loop: where
    (None: the running one). Once the loop is closed the bus detaches it.
    """

    def __init__(
        self,
        callback: Callable[[Event], Any],
        *kinds: type[Event],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Raise `RuntimeError` if no loop is given and none is running."""
        self._callback, self._kinds = callback, kinds
        self._loop = asyncio.get_running_loop() if loop is None else loop
        self._lock = threading.Lock()
        self._newest: dict[type[Event], Event] = {}

    def __call__(self, event: Event) -> None:
        """Note an event, and see that the loop fetches it."""
        if self._kinds and not isinstance(event, self._kinds):
            return
        with self._lock:
            under_way = bool(self._newest)
            self._newest[type(event)] = event
        if not under_way:
            self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        with self._lock:
            newest, self._newest = self._newest, {}
        for event in newest.values():
            self._callback(event)
