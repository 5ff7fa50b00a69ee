"""Ctrl-C that never lands in the middle of bookkeeping.

Whatever changes the queues or the block tables runs inside `shielded()`: an interrupt that arrives
there is held back and raised when the block ends, so a step is either planned or not, committed or
not. The forward pass stays interruptible, and a policy while it orders the queue; subscribers that
are called from within wait with it. Users' logits processors run within `exposed()`, since one may
take for ever. Only the main thread receives signals, so elsewhere nothing is done.
"""

from __future__ import annotations

import threading

# The C functions under `signal.signal` and `getsignal`: those turn handlers into enums first, which
# costs more than everything else that a step does for one sequence.
from _signal import SIGINT, getsignal  # type: ignore[import-not-found]
from _signal import signal as set_handler
from types import FrameType, TracebackType
from typing import Any


class shielded:
    """Context manager: hold SIGINT back until the block ends. It nests."""

    __slots__ = ("_active", "_arrived", "_previous")

    def __enter__(self) -> shielded:
        """Take over SIGINT where that is possible (main thread, a Python-level handler)."""
        self._arrived = False
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._previous = getsignal(SIGINT)
            self._active = callable(self._previous)
        if self._active:
            set_handler(SIGINT, self._remember)
        return self

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self._arrived = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the handler back, and let it see the interrupt that was held."""
        if not self._active:
            return
        set_handler(SIGINT, self._previous)
        if self._arrived and callable(self._previous):
            self._previous(SIGINT, None)


class exposed:
    """Context manager: let SIGINT through again within `shielded`, as around a user's function.

    One that was held back until now is seen at once. An interrupt that strikes in here leaves the
    handler as it is outside all shields, which they put back themselves as they end.
    """

    __slots__ = ("_shield",)

    def __enter__(self) -> exposed:
        """Give SIGINT back to whoever had it before the outermost shield."""
        self._shield: shielded | None = None
        if threading.current_thread() is not threading.main_thread():
            return self
        handler: Any = getsignal(SIGINT)
        shields: list[shielded] = []
        while isinstance(shield := getattr(handler, "__self__", None), shielded):
            shields.append(shield)
            handler = shield._previous
        if shields:
            self._shield = shields[0]
            set_handler(SIGINT, handler)
            if any(shield._arrived for shield in shields):
                for shield in shields:
                    shield._arrived = False
                handler(SIGINT, None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Shield again."""
        if self._shield is not None:
            set_handler(SIGINT, self._shield._remember)
