"""`AsyncEngine`: an engine for many callers at once, each of them a coroutine or a thread.

A thread of its own owns the engine; the methods here only leave word with it and return at once.
The engine never waits for anyone who reads, and with nothing to do it sleeps.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from workbench.async_engine.loop import EngineLoop
from workbench.async_engine.mailbox import Mailbox
from workbench.async_engine.reply import Reply
from workbench.async_engine.stream import TokenStream
from workbench.async_engine.ticket import Answer, Ticket
from workbench.config import require_positive
from workbench.describe import Described
from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.events import EventBus
from workbench.request import Prompt, RequestOutput
from workbench.sampling_params import SamplingParams

T = TypeVar("T")


class AsyncEngine(Described):
    """Owns `engine` from now on: it is stepped, changed and closed on this object's thread.

    engine: as made by `workbench.build` or by hand, maybe with requests in it; reach it through
    `call` alone. max_pending: requests that may be unfinished in the engine at once; further ones
    wait in line, first come first served (None: any number). What fails a step fails the requests
    that were running, each with a `RequestFailed`; the engine goes on with what comes after.

    What returns a `Reply` does so at once: `await` it, take its `result()`, or drop it.
    Use it as a context manager (`with`, `async with`), or call `close()`.
    """

    def __init__(self, engine: Engine, *, max_pending: int | None = 1024) -> None:
        """Raise `ConfigError` for a bad limit, `EngineClosed` for a closed engine."""
        if max_pending is not None:
            require_positive("max_pending", max_pending)
        if not isinstance(engine, Engine):
            fix = "Pass `wb.build(EngineConfig(…))`, or the `engine` of an LLM."
            raise ConfigError("engine", engine, "is not an Engine", fix)
        engine.require_open()
        engine.bus.source = weakref.ref(self)  # who watches asks this thread, through `call`
        self._loop = EngineLoop(engine, max_pending)
        weakref.finalize(self, self._loop.stop).atexit = False

    # --- requests -----------------------------------------------------------------------------

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        namespace: str = "",
        timeout: float | None = None,
        lora: str | None = None,
        wait: bool = True,
    ) -> TokenStream:
        """Submit a request; return the stream of its `StreamDelta`s, for `async for` or `for`.

        wait: whether to wait in line for a place under `max_pending`. The rest is as for
        `Engine.add` (`timeout` counts from when the engine takes it in). Reading raises
        `RequestError` for what could not run, `QueueFull`, `EngineDraining`, `EngineClosed`, and
        `RequestFailed` if a step fails. Closing or dropping the stream aborts the request.
        """
        mailbox = Mailbox()
        options = _options(request_id, priority, namespace, timeout, lora)
        ticket = Ticket(prompt, params, options, wait, mailbox)
        self._loop.submit(ticket)
        # Through `self`, so that the engine runs for as long as somebody reads.
        return TokenStream(mailbox, lambda: self._loop.leave(ticket))

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        namespace: str = "",
        timeout: float | None = None,
        lora: str | None = None,
        wait: bool = True,
    ) -> Reply[RequestOutput]:
        """Submit a request; return a reply with its whole output. Arguments, errors as `stream`'s.

        Cancelling the reply, or a task that awaits it, aborts the request.
        """
        reply: Reply[RequestOutput] = Reply()
        options = _options(request_id, priority, namespace, timeout, lora)
        ticket = Ticket(prompt, params, options, wait, Answer(reply))
        self._loop.submit(ticket)
        reply.add_done_callback(lambda done: self._loop.leave(ticket) if done.cancelled() else None)
        return reply

    def abort(self, request_id: str) -> Reply[RequestOutput]:
        """End a request, keeping what it made: its stream ends, its reply is given the output.

        Replies with that output; with `UnknownRequest` where there is none, or it has ended.
        """

        def abort() -> RequestOutput:
            self._loop.desk.hurry(request_id)
            return self._loop.engine.abort(request_id)

        return self._loop.ask(abort)

    # --- the engine ---------------------------------------------------------------------------

    def call(self, function: Callable[[Engine], T]) -> Reply[T]:
        """Run `function(engine)` between two steps on the engine's thread; reply with its result.

        The way to everything else: swap a part, inspect the cache, fork, read figures. What it
        raises is the reply's error. The engine waits while it runs.
        """
        return self._loop.ask(lambda: function(self._loop.engine))

    @property
    def bus(self) -> EventBus:
        """The engine's bus. Subscribers are called on the engine's thread; see `OnLoop`."""
        return self._loop.engine.bus

    def pause(self) -> Reply[None]:
        """Stop stepping. Requests stay where they are, and new ones are accepted."""
        return self._loop.ask(self._loop.pause)

    def step(self, count: int = 1) -> Reply[int]:
        """Run up to `count` steps, also of a paused engine; reply with how many there were to run.

        Readers get their tokens as ever. Raises `ConfigError` for a bad count.
        """
        require_positive("count", count)
        return self._loop.ask(lambda: self._loop.step(count))

    def resume(self) -> Reply[None]:
        """Step again after `pause`, and take requests again after `drain`."""
        return self._loop.ask(self._loop.resume)

    def drain(self) -> Reply[None]:
        """Refuse new requests (`EngineDraining`); reply once all there are have finished.

        Those in line count. A pause is over by that. `resume()` opens again.
        """
        return self._loop.drain()

    # --- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Abort everything (`EngineClosed` to whoever waits), end the thread, give memory back.

        Waits for the step under way. Idempotent; on the engine's own thread it only leaves word.
        """
        self._loop.close()

    async def aclose(self) -> None:
        """Close without blocking the running event loop."""
        self._loop.stop()
        await asyncio.shield(asyncio.wrap_future(self._loop.ended))
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed: no memory is held, everything is refused."""
        return self._loop.closed

    def __enter__(self) -> AsyncEngine:
        """Use as a context manager."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()

    async def __aenter__(self) -> AsyncEngine:
        """Use as an asynchronous context manager."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        await self.aclose()

    def describe(self) -> dict[str, Any]:
        """Return what it is doing and how many wait for it, as of a moment ago."""
        return self._loop.describe()


def _options(
    request_id: str | None,
    priority: int,
    namespace: str,
    timeout: float | None,
    lora: str | None,
) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "priority": priority,
        "namespace": namespace,
        "timeout": timeout,
        "lora": lora,
    }
