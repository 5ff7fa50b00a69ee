"""`Replies`: what an engine on a thread of its own answers, handed over to where widgets belong.

Used by the controls of the dashboard and of the adapters' panel, which leave word with an
`AsyncEngine` and go on: its thread answers between two steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from workbench.async_engine.reply import Reply

T = TypeVar("T")


class Replies:
    """Hears replies on the engine's thread; speaks on the loop that it was made on.

    Made where no loop runs, as in a script, it speaks on the engine's thread: nobody looks on. Once
    the loop is closed it says nothing. tell: gets errors as text.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell, self._loop = tell, running_loop()

    def hear(self, reply: Reply[T], then: Callable[[T], Any] | None = None) -> None:
        """Give `then` the answer once it is there, or `tell` the error; nothing if called off."""

        def heard(answered: Any) -> None:
            error = None if answered.cancelled() else answered.exception()
            if error is not None:
                self.hand_over(self.tell, said(error))
            elif then is not None and not answered.cancelled():
                self.hand_over(then, answered.result())

        reply.add_done_callback(heard)

    def hand_over(self, function: Callable[[Any], Any], argument: Any) -> None:
        """Call a function on the loop, from any thread."""
        if self._loop is None:
            function(argument)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, argument)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs on this thread, None where none does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def said(error: BaseException) -> str:
    """Return an error as a panel says it."""
    return f"{type(error).__name__}: {error}"
