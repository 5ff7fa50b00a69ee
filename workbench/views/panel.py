"""`Panel`: what every widget of the package has, whatever it shows.

A still picture and a sentence for readers without the widget, commands of the browser, errors of
callbacks in the panel itself, updates at most ten times a second, an end. `View` is a panel of a
trace, step by step.
"""

from __future__ import annotations

import base64
import traceback
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar, Self

import anywidget
import traitlets

from workbench.errors import ConfigError
from workbench.views.esm import STYLE
from workbench.views.pace import Pacer
from workbench.views.picture import figure_png
from workbench.views.replies import said

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Panel(anywidget.AnyWidget):
    """A widget whose subclass says how to `take` news, what to say and how to draw it.

    `close()`, or leaving a `with` block, ends updates and removes the widget.
    """

    _css = STYLE
    PICTURE_INCHES: ClassVar[tuple[float, float]] = (9.0, 3.6)

    problem = traitlets.Unicode().tag(sync=True)
    notice = traitlets.Unicode().tag(sync=True)  # what the last command came to, if not well

    def __init__(self) -> None:
        # A subclass that has set its traits by now sends all of them in one message.
        if not hasattr(self, "_pacer"):
            self._pacer = Pacer(self._update)
        super().__init__()
        self.on_msg(self._command)

    def take(self) -> None:
        """Read what is new and set the traits."""
        raise NotImplementedError(f"{type(self).__name__}.take")

    def summary(self) -> str:
        """Return one sentence on what is shown: the picture's alternative text."""
        raise NotImplementedError(f"{type(self).__name__}.summary")

    def draw(self, figure: Figure) -> None:
        """Draw what is shown into an empty figure, for readers without the widget."""
        raise NotImplementedError(f"{type(self).__name__}.draw")

    def act(self, content: dict[str, Any]) -> None:
        """Do what the browser asks for: {"command": name, …}. What it raises is shown as `notice`.

        Overriders handle their commands and leave all others to this one.
        """
        raise ConfigError("command", content, "is no command, or lacks a part", "Reload the page.")

    def tell(self, text: str) -> None:
        """Show what a command came to; empty: nothing."""
        self.notice = text

    def _command(self, _: Any, content: dict[str, Any], __: Any) -> None:
        self.tell("")
        try:
            self.act(content)
        except Exception as error:  # noqa: BLE001 - in a callback nobody would see it: it is shown
            self.tell(said(error))

    def _update(self) -> None:
        try:
            self.take()
            self.problem = ""
        except Exception:  # noqa: BLE001 - in a callback nobody would see it: the panel says it
            self.problem = traceback.format_exc(limit=-3)

    def to_png(self) -> bytes:
        """Return what is shown as a PNG picture."""
        self._pacer.flush()
        return figure_png(self.draw, *self.PICTURE_INCHES)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        picture = base64.b64encode(self.to_png()).decode()
        html = f'<img alt="{escape(self.summary())}" src="data:image/png;base64,{picture}">'
        still = {"text/plain": repr(self), "image/png": picture, "text/html": html}
        return {**bundle, **still}, metadata

    def __repr__(self) -> str:
        """One line: the class and its summary."""
        return f"{type(self).__name__}({self.summary()})"

    def close(self) -> None:
        """End updates and remove the widget; a second time does nothing."""
        if not hasattr(self, "_pacer"):
            return  # its construction failed, and this is `__del__`
        self._pacer.stop()
        super().close()

    def __enter__(self) -> Self:
        """Return the panel; it is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
