"""How every component shows itself: one line in a terminal, a small table in a notebook.

A class that mixes in `Described` writes one method, `describe()`, and gets `repr` and
`_repr_html_`. Values are escaped: prompt text is never read as HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any


class Text(str):
    """A fact that somebody wrote or a model said: a line shows it quoted, and cut where long."""

    __slots__ = ()


class Described:
    """Mixin: `describe()` returns the facts worth showing, in order, as `{label: value}`.

    A dataclass that mixes it in says `repr=False`: its own repr would print all it holds.
    """

    __slots__ = ()

    def describe(self) -> Mapping[str, Any]:
        """Return what a reader wants to know of this object now. Cheap, and changes nothing."""
        raise NotImplementedError(f"{type(self).__name__}.describe")

    def __repr__(self) -> str:
        """One line: the class and its facts."""
        facts = ", ".join(f"{label}={_line(value)}" for label, value in self.describe().items())
        return f"{type(self).__name__}({facts})"

    def _repr_html_(self) -> str:
        return facts_table(type(self).__name__, self.describe())


def facts_table(title: str, facts: Mapping[str, Any]) -> str:
    """Return an HTML table of two columns, label and value, under a caption."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(str(label))}</th>'
        f'<td style="text-align:left">{_cell(value)}</td></tr>'
        for label, value in facts.items()
    )
    return f"<table><caption><b>{escape(title)}</b></caption>{rows}</table>"


def rows_table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return an HTML table with a header line, for lists of records."""
    head = "".join(f"<th>{escape(label)}</th>" for label in header)
    body = "".join(
        "<tr>" + "".join(f'<td style="text-align:left">{_cell(v)}</td>' for v in row) + "</tr>"
        for row in rows
    )
    return (
        f"<table><caption><b>{escape(title)}</b></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def human_bytes(count: float) -> str:
    """Return a byte count as text with a binary unit, such as `44.0 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _line(value: Any, limit: int = 80) -> str:
    """Return a value as part of a line: what has several of them, like `Text`, quoted and cut."""
    text = str(value)
    if isinstance(value, Text) or "\n" in text:
        return repr(text if len(text) <= limit else text[: limit - 1] + "…")
    return text


def _cell(value: Any) -> str:
    text = (
        value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else value
    )
    return escape(str(text)).replace("\n", "<br>")
