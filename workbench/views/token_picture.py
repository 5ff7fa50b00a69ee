"""The still picture of `TokenView`, for readers without the widget.

The text up to the step shown, shaded as in the widget, and the surprise of each token above it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, log
from typing import TYPE_CHECKING

from workbench.views.lane import Lane, Maker
from workbench.views.run_log import RunLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_BITS = 6.0  # as in js/token_facts.js
_UNSURE = (230, 159, 0)
_MARKS = {
    Maker.DRAFTED: "#CC79A7",
    Maker.CHOSEN: "#56B4E9",
    Maker.BROUGHT: "#999999",
    Maker.FORCED: "#009E73",
}
_WIDTH, _LINES = 108, 9  # characters
_PROMPT = 200  # tokens of a prompt that are drawn


def draw_tokens(
    figure: Figure,
    run: RunLog,
    lane: Lane | None,
    shown: int | None,
    text_of: Callable[[int], str],
) -> None:
    """Draw a sequence's tokens up to column `shown` as shaded text, and their surprise as bars."""
    above, below = figure.subplots(2, 1, height_ratios=(1, 3))
    below.set_axis_off()
    if lane is None:
        above.set_axis_off()
        below.text(0.5, 0.5, "No request yet.", ha="center")
        return
    columns, at = run.columns, -1 if shown is None else shown
    places = [p for p in run.token_places(lane) if columns["token_column"][p] <= at]
    output = places[lane.num_prompt_tokens :]
    heights = [_bits(columns["token_logprob"][place]) for place in output]
    above.bar(range(len(output)), heights, 0.9, color="#E69F00")
    above.set_ylabel("surprise, bits")
    above.set_xlabel(f"output tokens of {lane.name}")
    above.set_ylim(0, _MOST_BITS)
    above.spines[["top", "right"]].set_visible(False)
    _write(below, run, lane, places, text_of)


def _write(
    axes: Axes,
    run: RunLog,
    lane: Lane,
    places: list[int],
    text_of: Callable[[int], str],
) -> None:
    """Write tokens in lines of a fixed width, the last lines if there are too many."""
    columns, x, line = run.columns, 0, 0
    written: list[tuple[int, int, str, int, int]] = []
    for position, place in enumerate(places):
        if position < lane.num_prompt_tokens - _PROMPT:
            continue
        token_id = columns["token_id"][place]
        for piece in text_of(token_id).replace("\t", "    ").splitlines(keepends=True) or [" "]:
            if x + len(piece) > _WIDTH:
                x, line = 0, line + 1
            written.append((x, line, piece.rstrip("\n") or "↵", place, position))
            x += len(piece)
            if piece.endswith("\n"):
                x, line = 0, line + 1
    first = max(0, line - _LINES + 1)
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(_LINES, 0)
    for x, line, piece, place, position in written:
        if line < first:
            continue
        strength = _bits(columns["token_logprob"][place]) / _MOST_BITS
        paper = tuple((255 + (c - 255) * 0.85 * strength) / 255 for c in _UNSURE)
        prompt = position < lane.num_prompt_tokens
        axes.text(
            x,
            line - first + 0.5,
            piece,
            color="#808080" if prompt else "black",
            family="monospace",
            fontsize=8,
            va="center",
            bbox={"facecolor": paper, "edgecolor": "none", "pad": 0.6} if strength else None,
        )
        mark = _MARKS.get(Maker(columns["token_maker"][place]))
        if mark is not None:
            axes.plot([x, x + len(piece)], [line - first + 0.92] * 2, color=mark, linewidth=1.5)


def _bits(logprob: float) -> float:
    return 0.0 if isnan(logprob) else min(_MOST_BITS, max(0.0, -logprob / log(2)))
