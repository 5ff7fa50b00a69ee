"""`Pacer`: from an engine's events to a widget, at most ten times a second, newest wins.

Events come on an engine's thread, or in the notebook's own while a cell steps an engine; a widget
belongs to the notebook's. A pacer takes pokes from both and calls back on the notebook's loop only.
Different from `async_engine.OnLoop`, which hands events over: here they are kept by a trace, and
what is handed over is that there are some.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from workbench.views.replies import running_loop


class Pacer:
    """Calls `callback()` after pokes, not more often than every `seconds`, and after the last one.

    Made where a loop runs, as in every cell, it calls back on that loop's thread: from a cell that
    is busy stepping, in between; else as soon as the loop is free. Made without a loop, as in a
    script, nobody looks on: then `flush()` alone calls back. Once the loop is closed `poke` raises
    `RuntimeError`, so that a bus detaches whoever pokes.
    """

    def __init__(self, callback: Callable[[], Any], seconds: float = 0.1) -> None:
        self._callback, self._seconds = callback, seconds
        self._loop = running_loop()
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._owed = self._scheduled = self._stopped = False
        self._next = 0.0  # when the next call may be

    def poke(self) -> None:
        """Say that there is something new; from any thread, and cheap."""
        self._owed = True
        if self._loop is None or self._stopped:
            return
        if threading.get_ident() == self._thread and time.monotonic() >= self._next:
            self.flush()
            return
        with self._lock:
            under_way, self._scheduled = self._scheduled, True
        if not under_way:
            self._loop.call_soon_threadsafe(self._arm)

    def flush(self) -> None:
        """Call back now if anything is owed; on the loop's thread, or where there is no loop."""
        if self._owed and not self._stopped:
            self._owed = False
            self._callback()
            self._next = time.monotonic() + self._seconds  # after the work: slow work paces itself

    def stop(self) -> None:
        """Never call back again."""
        self._stopped = True

    def _arm(self) -> None:
        assert self._loop is not None
        self._loop.call_later(max(0.0, self._next - time.monotonic()), self._fire)

    def _fire(self) -> None:
        with self._lock:
            self._scheduled = False
        self.flush()
