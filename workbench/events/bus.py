"""`EventBus`: carries what the parts of an engine state to whoever listens.

Parts emit records (`if bus: bus.emit(…)`, so with no subscriber nothing is even built). A
subscriber that raises is detached with its traceback, and the engine goes on.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.describe import Described
from workbench.errors import ConfigError
from workbench.events.event import Event


@dataclass(slots=True)
class SubscriberFailed(Event):
    """A subscriber raised and was detached."""

    subscriber: str
    error: str


Subscriber = Callable[[Event], Any]


class EventBus(Described):
    """Carries events to subscribers, in order, at once. False while nobody listens.

    source: a weak reference to whoever may be asked what was before (the engine, or the
    `AsyncEngine` that owns it). A subscriber with a method `subscribed` is given the bus.
    """

    def __init__(self) -> None:
        self.source: Callable[[], Any] | None = None
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber(event)` for each event from now on; return a function that ends it.

        Raises `ConfigError` for what cannot be called.
        """
        if not callable(subscriber):
            fix = "Pass a function of an event, or a view."
            raise ConfigError("subscriber", subscriber, "cannot be called", fix)
        self._subscribers.append(subscriber)
        told = getattr(subscriber, "subscribed", None)
        if told is not None:
            told(self)
        return lambda: self.unsubscribe(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Stop calling `subscriber`. Unknown subscribers are fine: it may have been detached."""
        self._subscribers = [s for s in self._subscribers if s is not subscriber]

    def __bool__(self) -> bool:
        """Whether anyone listens; guard `emit` with it so that an idle bus costs nothing."""
        return bool(self._subscribers)

    def emit(self, event: Event) -> None:
        """Give `event` to every subscriber; one that raises is detached, with a warning."""
        failed: list[tuple[Subscriber, Exception]] | None = None
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception as error:  # noqa: BLE001 - a watcher must never stop the engine
                failed = [*(failed or ()), (subscriber, error)]
        if failed is not None:
            self._detach(failed, event.step)

    def _detach(self, failed: list[tuple[Subscriber, Exception]], step: int) -> None:
        for subscriber, error in failed:
            trace = "".join(traceback.format_exception(error))
            warn(f"event subscriber {subscriber!r} detached:\n{trace}", stacklevel=4)
            self.unsubscribe(subscriber)
            self.emit(SubscriberFailed(step, repr(subscriber), trace))

    def describe(self) -> dict[str, Any]:
        """Return who listens."""
        return {"subscribers": len(self._subscribers)}


def warn(message: str, stacklevel: int) -> None:
    """Warn; where warnings are made errors, write to stderr: an error in mid-step would do harm."""
    try:
        warnings.warn(message, stacklevel=stacklevel)
    except Warning:
        sys.stderr.write(f"UserWarning: {message}\n")
