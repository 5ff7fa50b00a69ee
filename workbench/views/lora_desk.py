"""How a panel reaches an engine's adapters: at once, or by word left with an `AsyncEngine`.

Called by `LoRAPanel`. What comes back late is handed over on the notebook's loop, to which widgets
belong.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from workbench.async_engine import AsyncEngine
from workbench.errors import WorkbenchError
from workbench.lora import LoRAManager

T = TypeVar("T")


class Desk(Protocol):
    """Asks the manager, where it may be asked. Errors go to `tell`."""

    tell: Callable[[str], None]

    def ask(self, function: Callable[[LoRAManager], T], then: Callable[[T], None]) -> None:
        """Give `then` what `function` says of the manager."""

    def load(self, name: str, path: str, then: Callable[[Any], None]) -> None:
        """Have an adapter loaded from a folder, then call `then`."""


class ManagerDesk:
    """Asks a manager that is used on the notebook's own thread."""

    def __init__(self, manager: LoRAManager, tell: Callable[[str], None]) -> None:
        self.manager, self.tell = manager, tell

    def ask(self, function: Callable[[LoRAManager], T], then: Callable[[T], None]) -> None:
        """Ask at once."""
        try:
            found = function(self.manager)
        except WorkbenchError as error:
            self.tell(_said(error))
        else:
            then(found)

    def load(self, name: str, path: str, then: Callable[[Any], None]) -> None:
        """Load it at once."""
        self.ask(lambda manager: manager.load(name, path), then)


class AsyncDesk:
    """Leaves word with an engine that runs on a thread of its own: it answers between two steps."""

    def __init__(self, aengine: AsyncEngine, tell: Callable[[str], None]) -> None:
        self.aengine, self.tell = aengine, tell
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def ask(self, function: Callable[[LoRAManager], T], then: Callable[[T], None]) -> None:
        """Leave word."""

        def heard(reply: Any) -> None:
            if reply.cancelled():
                return
            error = reply.exception()
            if error is None:
                self._hand_over(then, reply.result())
            else:
                self._hand_over(self.tell, _said(error))

        try:
            self.aengine.call(lambda engine: function(engine.loras)).add_done_callback(heard)
        except WorkbenchError as error:
            self.tell(_said(error))

    def load(self, name: str, path: str, then: Callable[[Any], None]) -> None:
        """Have a thread read the folder while the engine goes on, then leave word."""

        def read(manager: LoRAManager) -> None:
            try:
                adapter = manager.read(path)
            except WorkbenchError as error:
                self._hand_over(self.tell, _said(error))
            else:
                self.ask(lambda manager: manager.load(name, adapter), then)

        def start(manager: LoRAManager) -> None:
            threading.Thread(target=read, args=(manager,), name="adapter", daemon=True).start()

        def known(manager: LoRAManager) -> LoRAManager:
            manager.check_new(name)
            return manager

        self.ask(known, start)

    def _hand_over(self, then: Callable[[Any], None], found: Any) -> None:
        if self._loop is None:
            then(found)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(then, found)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
