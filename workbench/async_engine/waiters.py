"""Whoever waits for news of a stream: a blocked thread, or a task of some event loop.

Made by `TokenStream`, woken by the engine's thread, which never waits for them. All tasks of one
loop are woken by a single call into it, because each such call is a system call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from queue import SimpleQueue


class ThreadWaiter:
    """A thread that blocks until it is woken.

    By a queue, as an interrupt leaves that whole: one that comes while a `threading.Event` takes
    its lock again ends in "release unlocked lock" in place of the `KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self._woken: SimpleQueue[None] = SimpleQueue()

    def wait(self) -> None:
        """Block until `wake`, if that has not been called yet."""
        self._woken.get()

    def wake(self) -> None:
        """End the wait, from any thread."""
        self._woken.put(None)


class TaskWaiter:
    """A task of the running event loop; it awaits `future`."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()


Waiter = ThreadWaiter | TaskWaiter


def wake(waiters: Iterable[Waiter]) -> None:
    """Wake them, from any thread. Tasks whose loop was closed are past waking."""
    futures: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for waiter in waiters:
        if isinstance(waiter, ThreadWaiter):
            waiter.wake()
        else:
            futures.setdefault(waiter.loop, []).append(waiter.future)
    for loop, those in futures.items():
        with suppress(RuntimeError):  # closed: `Mailbox.abandoned` tells the desk
            loop.call_soon_threadsafe(_resolve, those)


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():  # its task may have been cancelled meanwhile
            future.set_result(None)
