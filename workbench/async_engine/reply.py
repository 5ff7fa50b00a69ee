"""`Reply`: what the engine's thread will answer, for coroutines and threads alike.

Returned by every method of `AsyncEngine` that asks the engine for something. A plain
`concurrent.futures.Future` that can also be awaited, on any event loop; dropping it is fine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Reply(Future[T], Generic[T]):
    """`await reply` in a coroutine, `reply.result(timeout)` in a thread.

    Cancelling it, or the task that awaits it, calls off what was asked for. Callbacks
    (`add_done_callback`) run on the engine's thread and hold it up.
    """

    _loop: asyncio.AbstractEventLoop | None = None  # where it is being awaited

    def __await__(self) -> Generator[Any, None, T]:
        """Wait without blocking the running event loop."""
        return self._wait().__await__()

    async def _wait(self) -> T:
        self._loop = asyncio.get_running_loop()
        try:
            return await asyncio.wrap_future(self)
        finally:
            self._loop = None
            self.cancel()  # does nothing once it is answered

    @property
    def abandoned(self) -> bool:
        """Whether a task awaits it whose event loop was closed: nobody will get the answer."""
        loop = self._loop
        return loop is not None and loop.is_closed()

    # The engine's thread calls one of these, once. Whoever asked may cancel at any moment.

    def answer(self, result: T) -> None:
        """Give the result."""
        with suppress(InvalidStateError):
            self.set_result(result)

    def refuse(self, error: BaseException) -> None:
        """Give an error in the result's place."""
        with suppress(InvalidStateError):
            self.set_exception(error)

    def drop(self) -> None:
        """Confirm a cancellation, which `concurrent.futures.wait` waits for."""
        if self.cancelled():
            self.set_running_or_notify_cancel()

    def run(self, action: Callable[[], T]) -> None:
        """Answer with what `action` returns or raises; do nothing if it was cancelled before."""
        if self.cancelled():
            self.drop()
            return
        try:
            result = action()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever asked
            self.refuse(error)
        else:
            self.answer(result)
