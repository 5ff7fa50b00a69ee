"""`View`: the base of all views. A subclass says what to send, what to say and how to draw it.

How to write one. In Python (`views/<name>.py`): `_esm = compose("<name>")`; traits tagged
`sync=True`, bulk as `Bytes` made by `packed`; `update()` reads `self.trace`, sets them and returns
the bounds; `summary()` is a sentence; `draw(figure)` the still picture. In the browser
(`views/js/<name>.js`, imports from the files beside it only, ends with `export default
mount("<name>", build)`): `build(panel)` makes elements and returns `{load, draw, traits}`, see
`js/panel.js`. The step, the controls, the theme, errors, live updates and leaving are done here.
Scrubbing must not need the kernel: send the whole log once. Name it in `views/__init__.py`; test
the drawing maths by `tests/views/<name>.test.mjs`, the traits by `tests/views/test_<name>.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import traitlets

from workbench.async_engine import AsyncEngine
from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.events import Event, EventBus
from workbench.llm import LLM
from workbench.trace import Trace
from workbench.views.cursor import Cursor, cursor_of
from workbench.views.pace import Pacer
from workbench.views.panel import Panel
from workbench.views.recording import Recording

_HOW = "Pass a Trace or an Engine, or nothing and `engine.bus.subscribe(view)`."


def packed(values: npt.ArrayLike, dtype: npt.DTypeLike) -> bytes:
    """Return an array as little-endian zlib bytes, for JavaScript's `unpack`."""
    array = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
    return zlib.compress(array.tobytes(), 1) if array.size else b""


class View(Panel):
    """A widget that shows a trace, step by step.

    source: a `Trace` (shown as it is now; `refresh()` after it has grown); an `Engine`, an `LLM` or
    an `AsyncEngine` (live, at most ten times a second, one recording for all its views, which keeps
    the last `recording.MOST_EVENTS` events); or None:
    `engine.bus.subscribe(view)` makes it live. All views of one trace or engine share `step` and
    `selected` (a sequence id); `link` joins others. `close()`, or leaving a `with` block, ends live
    updates and removes the widget.
    """

    trace_id = traitlets.Unicode().tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    selected = traitlets.Int(None, allow_none=True).tag(sync=True)
    first_step = traitlets.Int(0).tag(sync=True)
    last_step = traitlets.Int(0).tag(sync=True)
    live = traitlets.Bool(False).tag(sync=True)
    follow = traitlets.Bool(False).tag(sync=True)

    def __init__(self, source: Trace | Engine | LLM | AsyncEngine | None = None) -> None:
        """Raise `ConfigError` for another source."""
        if isinstance(source, LLM):
            source = source.engine
        if not (source is None or isinstance(source, Trace | Engine | AsyncEngine)):
            raise ConfigError("source", source, "is nothing a view can show", _HOW)
        self._pacer = Pacer(self._update)
        self._recording: Recording | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._links: list[traitlets.link] = []
        if isinstance(source, Trace):
            self._show(source)
        else:
            self._watch(Recording(Trace()) if source is None else Recording.of(source))
        super().__init__()  # sends all of the above in one message

    # --- what a view says of itself --------------------------------------------------------------

    def update(self) -> tuple[int, int]:
        """Read what is new in `self.trace`, set the traits; return the first and last step."""
        raise NotImplementedError(f"{type(self).__name__}.update")

    def opening_step(self) -> int:
        """Return the step to show first, if no other view of the trace has been shown."""
        return self.step

    def reset(self) -> None:
        """Forget what `update` has read: `self.trace` is another one now, or has lost its older
        half."""

    # --- live ------------------------------------------------------------------------------------

    def subscribed(self, bus: EventBus) -> None:
        """Called by a bus that the view is subscribed to: watch the engine that speaks there."""
        if self._recording is None:
            raise ConfigError("source", self.trace, "is a finished trace", _HOW)
        self._unsubscribe = lambda: bus.unsubscribe(self)
        engine = None if bus.source is None else bus.source()
        if engine is not None:
            self._watch(Recording.of(engine))

    def __call__(self, event: Event) -> None:
        """Take one event of a bus that has no engine; else the engine's recording takes it."""
        if self._recording is not None and not self._recording.of_engine:
            self._recording(event)

    def _watch(self, recording: Recording) -> None:
        if self._recording is not None:
            self._recording.leave(self._pacer)
        self._recording = recording
        recording.join(self._pacer)
        self._show(recording.trace)
        self.cursor.live = self.cursor.follow = True

    def _show(self, trace: Trace) -> None:
        self.trace, self._num_shortened = trace, trace.num_shortened
        self.reset()
        cursor = cursor_of(trace)
        self._join(cursor)
        self.take()
        if not cursor.opened:
            self.step, cursor.opened = self.opening_step(), True

    def refresh(self) -> None:
        """Show what has been recorded since; live views do so by themselves."""
        self._pacer.flush()
        self.take()

    def take(self) -> None:
        """Take in what the trace has got since."""
        with self.trace.reading():
            if self._num_shortened != self.trace.num_shortened:
                self._num_shortened = self.trace.num_shortened
                self.reset()
            bounds = self.update()
        self.cursor.grow(self, *bounds)

    def _should_send_property(self, key: str, value: Any) -> bool:
        if key == "step" and self.cursor.growing:
            return False
        return bool(super()._should_send_property(key, value))

    # --- one step for several views --------------------------------------------------------------

    def _join(self, cursor: Cursor) -> None:
        self._leave()
        self.cursor, self.trace_id = cursor, cursor.trace_id
        self._links = [traitlets.link((cursor, n), (self, n)) for n in Cursor.SHARED]

    def _leave(self) -> None:
        for link in self._links:
            link.unlink()
        if self._links:
            self.cursor.forget(self)
        self._links = []

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop live updates and remove the widget; a second time does nothing."""
        if not hasattr(self, "_pacer"):
            return  # its construction failed, and this is `__del__`
        if self._recording is not None:
            self._recording.leave(self._pacer)
        if self._unsubscribe is not None:
            self._unsubscribe()
        self._leave()
        super().close()


def link(first: View, *others: View) -> None:
    """Let views of other traces share the first one's step: two runs side by side."""
    for view in others:
        bounds = view.first_step, view.last_step
        view._join(first.cursor)
        first.cursor.grow(view, *bounds)
