"""How a panel reaches an engine's adapters: at once, or by word left with an `AsyncEngine`.

Called by `LoRAPanel`. What comes back late is handed over on the notebook's loop (`Replies`), to
which widgets belong.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from workbench.async_engine import AsyncEngine
from workbench.errors import WorkbenchError
from workbench.lora import LoRAManager
from workbench.views.replies import Replies, said

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
            self.tell(said(error))
        else:
            then(found)

    def load(self, name: str, path: str, then: Callable[[Any], None]) -> None:
        """Load it at once."""
        self.ask(lambda manager: manager.load(name, path), then)


class AsyncDesk:
    """Leaves word with an engine that runs on a thread of its own: it answers between two steps."""

    def __init__(self, aengine: AsyncEngine, tell: Callable[[str], None]) -> None:
        self.aengine, self.tell = aengine, tell
        self._replies = Replies(tell)

    def ask(self, function: Callable[[LoRAManager], T], then: Callable[[T], None]) -> None:
        """Leave word."""
        try:
            reply = self.aengine.call(lambda engine: function(engine.loras))
        except WorkbenchError as error:
            self.tell(said(error))
        else:
            self._replies.hear(reply, then)

    def load(self, name: str, path: str, then: Callable[[Any], None]) -> None:
        """Have a thread read the folder while the engine goes on, then leave word."""

        def read(manager: LoRAManager) -> None:
            try:
                adapter = manager.read(path)
            except WorkbenchError as error:
                self._replies.hand_over(self.tell, said(error))
            else:
                self.ask(lambda manager: manager.load(name, adapter), then)

        def start(manager: LoRAManager) -> None:
            threading.Thread(target=read, args=(manager,), name="adapter", daemon=True).start()

        def known(manager: LoRAManager) -> LoRAManager:
            manager.check_new(name)
            return manager

        self.ask(known, start)
