"""`TokenStream`: the tokens of one request as they come, in a coroutine or in a plain thread.

Made by `AsyncEngine.stream`. Whatever ends the reading ends the request: leaving the loop, an
error, a cancelled task, a loop that is closed, or the last reference to the stream going away.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from workbench.async_engine.delta import StreamDelta
from workbench.async_engine.mailbox import Mailbox, News
from workbench.async_engine.waiters import TaskWaiter, ThreadWaiter
from workbench.describe import Described
from workbench.request import RequestOutput


class TokenStream(Described):
    """`async for delta in stream` on any event loop, or `for delta in stream` in a thread.

    One reader at a time. The request runs from when the stream is made, at its own pace. With
    `async with stream` (or `with`), it ends with the block, at the latest; without, with the last
    reference to the stream. `output` is the whole output, once the stream has come to its end.
    """

    def __init__(self, mailbox: Mailbox, leave: Callable[[], None]) -> None:
        """leave: tells the engine that nobody reads any more; callable in a finalizer."""
        self._mailbox, self._leave = mailbox, leave
        self._deltas: deque[StreamDelta] = deque()
        self._error: BaseException | None = None
        self._ended = self._reading = False
        self.output: RequestOutput | None = None

    @property
    def request_id(self) -> str | None:
        """The request's id; None before the engine has accepted it."""
        return self._mailbox.request_id

    def close(self) -> None:
        """Read no further: the request is aborted if it still runs. Never blocks; idempotent."""
        self._deltas.clear()
        if not self._ended:
            self._ended = True
            self._leave()

    async def aclose(self) -> None:
        """Do what `close` does, under the name that `contextlib.aclosing` calls."""
        self.close()

    # --- in a coroutine -----------------------------------------------------------------------

    def __aiter__(self) -> TokenStream:
        """Return itself."""
        return self

    async def __anext__(self) -> StreamDelta:
        """Return the next delta as soon as there is one; raise what ended the request badly."""
        if not self._deltas and not self._over():
            await self._read()
        if not self._deltas:
            self._raise()
            raise StopAsyncIteration
        return self._deltas.popleft()

    async def _read(self) -> None:
        self._begin_reading()
        try:
            news = None
            while news is None:
                waiter = TaskWaiter()
                news = self._mailbox.take(waiter)
                # A reader that finds something each time must let the loop turn, too.
                await (waiter.future if news is None else asyncio.sleep(0))
            self._unpack(news)
        except BaseException:  # above all a cancelled task
            self.close()
            raise
        finally:
            self._reading = False

    async def __aenter__(self) -> TokenStream:
        """Return itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        self.close()

    # --- in a thread --------------------------------------------------------------------------

    def __iter__(self) -> TokenStream:
        """Return itself."""
        return self

    def __next__(self) -> StreamDelta:
        """Block until the next delta is there; raise what ended the request badly."""
        if not self._deltas and not self._over():
            self._read_blocking()
        if not self._deltas:
            self._raise()
            raise StopIteration
        return self._deltas.popleft()

    def _read_blocking(self) -> None:
        self._begin_reading()
        try:
            news = None
            while news is None:
                waiter = ThreadWaiter()
                news = self._mailbox.take(waiter)
                if news is None:
                    waiter.wait()
            self._unpack(news)
        except BaseException:  # above all an interrupt
            self.close()
            raise
        finally:
            self._reading = False

    def __enter__(self) -> TokenStream:
        """Return itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()

    # --- both ---------------------------------------------------------------------------------

    def _over(self) -> bool:
        return self._ended or self._error is not None

    def _begin_reading(self) -> None:
        if self._reading:
            raise RuntimeError("the stream is already being read: give each reader a stream")
        self._reading = True

    def _unpack(self, news: News) -> None:
        """Turn news into deltas; what ended the stream takes effect when those are read."""
        reader = self._mailbox.reader
        if reader is not None and (news.pieces or news.output):
            self._deltas.extend(reader.deltas(news.pieces, news.output))
        self.output, self._error = news.output, news.error
        self._ended = news.output is not None

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            self._ended = True
            raise error

    def __del__(self) -> None:
        """Abort what nobody can read any more."""
        self.close()

    def describe(self) -> dict[str, Any]:
        """Return whose stream it is and whether it has ended."""
        return {"request": self.request_id, "ended": self._ended}
