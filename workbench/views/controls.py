"""Driving an engine from a panel: run, pause, step, abort, and other budgets, between steps.

`EngineControls` steps an `Engine` as a task of the notebook's loop, one step at a time, so that
cells and widgets stay alive; `AsyncControls` leaves word with an `AsyncEngine`. Both change what
really runs, through the engine's public face.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from workbench.async_engine import AsyncEngine
from workbench.engine import Engine
from workbench.scheduler.policy import policy_name
from workbench.views.replies import Replies, said

_IDLE_SECONDS = 0.02  # between looks at an engine that has nothing to do


class Controls(Protocol):
    """What the panel's buttons do. Errors go to `tell`, which the panel shows."""

    tell: Callable[[str], None]

    @property
    def state(self) -> str:
        """`running`, `paused` or `closed`."""

    def run(self) -> None:
        """Step for as long as there is work."""

    def pause(self) -> None:
        """Stop stepping; requests stay where they are."""

    def step(self, count: int) -> None:
        """Run up to `count` steps now, then stay paused."""

    def abort(self, request_id: str) -> None:
        """End a request, keeping what it made."""

    def configure(self, changes: dict[str, Any]) -> None:
        """Change fields of the scheduler's config from the next step on."""

    def limits(self) -> dict[str, Any]:
        """Return the budgets and the policy that hold now."""


class EngineControls:
    """Controls of an `Engine` that nobody else steps meanwhile, on the loop it was made on."""

    def __init__(self, engine: Engine, tell: Callable[[str], None]) -> None:
        self.engine, self.tell = engine, tell
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        """Whether this object is stepping it."""
        if self.engine.closed:
            return "closed"
        return "running" if self._task is not None and not self._task.done() else "paused"

    def run(self) -> None:
        """Begin to step; `RuntimeError` where no loop runs."""
        if self.state == "paused":
            self._task = asyncio.get_running_loop().create_task(self._steps())

    async def _steps(self) -> None:
        try:
            while not self.engine.closed:
                if self.engine.has_work:
                    self.engine.step()
                    await asyncio.sleep(0)
                else:
                    await asyncio.sleep(_IDLE_SECONDS)
        except Exception as error:  # noqa: BLE001 - in a task nobody would see it
            self.tell(said(error))

    def pause(self) -> None:
        """Stop between two steps."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def step(self, count: int) -> None:
        """Run up to `count` steps."""
        self.pause()
        for _ in range(count):
            if not self.engine.has_work:
                break
            self.engine.step()

    def abort(self, request_id: str) -> None:
        """End a request."""
        self.engine.abort(request_id)

    def configure(self, changes: dict[str, Any]) -> None:
        """Change fields of the scheduler's config."""
        _configure(self.engine, changes)

    def limits(self) -> dict[str, Any]:
        """Return what holds now."""
        return _limits(self.engine)


class AsyncControls:
    """Controls of an `AsyncEngine`: each leaves word, and what comes back late is told."""

    def __init__(self, aengine: AsyncEngine, engine: Engine, tell: Callable[[str], None]) -> None:
        self.aengine, self.tell = aengine, tell
        self._engine = engine  # to read what is frozen; all else is the thread's
        self._replies = Replies(tell)

    @property
    def state(self) -> str:
        """What the engine's thread is doing."""
        state = str(self.aengine.describe()["state"])
        return "running" if state == "draining" else state

    def run(self) -> None:
        """Resume."""
        self._replies.hear(self.aengine.resume())

    def pause(self) -> None:
        """Pause."""
        self._replies.hear(self.aengine.pause())

    def step(self, count: int) -> None:
        """Pause, and run up to `count` steps."""
        self.pause()
        self._replies.hear(self.aengine.step(count))

    def abort(self, request_id: str) -> None:
        """End a request: its readers get what it made."""
        self._replies.hear(self.aengine.abort(request_id))

    def configure(self, changes: dict[str, Any]) -> None:
        """Change fields of the scheduler's config, between two steps."""
        self._replies.hear(self.aengine.call(lambda engine: _configure(engine, changes)))

    def limits(self) -> dict[str, Any]:
        """Return what holds now."""
        return _limits(self._engine)


def _configure(engine: Engine, changes: dict[str, Any]) -> None:
    engine.swap(scheduler_config=replace(engine.scheduler.config, **changes))


def _limits(engine: Engine) -> dict[str, Any]:
    config = engine.scheduler.config
    return {
        "max_batch_tokens": config.max_batch_tokens,
        "max_sequences": config.max_sequences,
        "max_prefill_tokens": config.max_prefill_tokens or config.max_batch_tokens,
        "policy": policy_name(engine.scheduler.policy),
    }
