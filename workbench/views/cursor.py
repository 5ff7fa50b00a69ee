"""`Cursor`: the step that all views of one trace share, on the kernel's side.

In the browser the panels share a step by themselves (`js/cursor.js`, by `trace_id`), also in a
saved notebook. Here the same is done for Python: set `step` on one view and the others follow. A
cursor lives as long as a view of its trace.
"""

from __future__ import annotations

import secrets
from weakref import WeakValueDictionary

import traitlets

_CURSORS: WeakValueDictionary[int, Cursor] = WeakValueDictionary()


class Cursor(traitlets.HasTraits):
    """Step and bounds of one trace. selected: a sequence's id; follow: show a live run's newest.

    growing: `step` moves because it follows. The browser follows by itself, and may know already
    that the reader looks back, so that is not sent.
    """

    step = traitlets.Int(0)
    selected = traitlets.Int(None, allow_none=True)
    first_step = traitlets.Int(0)
    last_step = traitlets.Int(0)
    live = traitlets.Bool(False)
    follow = traitlets.Bool(False)

    SHARED = ("step", "selected", "first_step", "last_step", "live", "follow")

    def __init__(self) -> None:
        super().__init__()
        self.trace_id = secrets.token_hex(8)
        self.growing = False
        self.opened = False  # whether a view has chosen the first step
        self._bounds: dict[int, tuple[int, int]] = {}

    def grow(self, view: object, first_step: int, last_step: int) -> None:
        """Take the bounds that one view shows; with `follow`, go to the newest step of all."""
        self._bounds[id(view)] = first_step, last_step
        self.growing = True
        with self.hold_trait_notifications():
            self.first_step = min(first for first, _ in self._bounds.values())
            self.last_step = max(last for _, last in self._bounds.values())
            step = self.last_step if self.follow else self.step
            self.step = max(self.first_step, min(self.last_step, step))
        self.growing = False

    @traitlets.observe("step")
    def _moved(self, _: object) -> None:
        if self.live and not self.growing:
            self.follow = self.step == self.last_step

    @traitlets.observe("follow")
    def _followed(self, _: object) -> None:
        if self.follow and not self.growing:  # the browser goes there, and does not say so
            self.growing = True
            self.step = self.last_step
            self.growing = False

    def forget(self, view: object) -> None:
        """Take no heed of a view's bounds any more."""
        self._bounds.pop(id(view), None)


def cursor_of(trace: object) -> Cursor:
    """Return the cursor of a trace, the same one for every view of it."""
    # By identity: whoever holds the cursor is a view, and a view holds its source.
    cursor = _CURSORS.get(id(trace))
    if cursor is None:
        cursor = _CURSORS[id(trace)] = Cursor()
    return cursor
