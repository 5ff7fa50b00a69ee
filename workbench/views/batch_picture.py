"""The still picture of `BatchTimeline`, for readers without the widget.

All steps over all sequences, with the strips of tokens and of time above, in the widget's colours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.views.lane import State, Work
from workbench.views.picture import rgb
from workbench.views.run_columns import PARTS
from workbench.views.run_log import RunLog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORK = {
    Work.DECODE: ("#009E73", "decode"),
    Work.VERIFY: ("#CC79A7", "draft verified"),
    Work.PREFILL: ("#0072B2", "prefill"),
    Work.RECOMPUTE: ("#D55E00", "recomputed"),
}
_STATES = {
    State.COMPILING: ("#F0E442", "grammar compiles"),
    State.WAITING: ("#D0D0D0", "waiting"),
    State.AWAITING_PREFIX: ("#56B4E9", "waiting for a prefix"),
    State.PREEMPTED: ("#E69F00", "preempted"),
    State.PAUSED: ("#707070", "paused"),
    State.RUNNING: ("#D5EDE5", "running, not in the batch"),
}
_PARTS = ("#E69F00", "#8A8A8A", "#CC79A7", "#56B4E9")


def draw_batches(figure: Figure, run: RunLog, shown: int | None, header: dict[str, Any]) -> None:
    """Draw tokens and times of all steps over their lanes; `shown` is the column that is marked."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    count = run.num_columns
    above, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 3))
    if not count:
        below.text(0.5, 0.5, "No step yet.", ha="center", transform=below.transAxes)
        return
    columns, x = run.columns, np.arange(count)
    work, column_of_row = (
        np.array(columns["row_work"]),
        np.repeat(x, np.array(columns["step_rows"])),
    )
    bottom = np.zeros(count)
    for kind, (colour, _) in _WORK.items():
        tokens = np.where(work == kind, np.array(columns["row_num"]), 0)
        sums = np.bincount(column_of_row, tokens, count)
        above.bar(x, sums, 1.0, bottom, color=colour)
        bottom += sums
    if header.get("max_batch_tokens"):
        above.axhline(header["max_batch_tokens"], color="black", linewidth=0.8, linestyle="--")
    above.set_ylabel("tokens")
    bottom = np.zeros(count)
    for part, colour in zip(PARTS, _PARTS, strict=True):
        values = 1e3 * np.array(columns[f"step_{part}"])
        middle.bar(x, values, 1.0, bottom, color=colour, label=part)
        bottom += values
    middle.set_ylabel("ms")
    middle.legend(loc="upper right", fontsize=7, ncols=4, frameon=False)
    picture, seen = _lanes(run)
    numbers = columns["step_number"]
    below.imshow(
        picture,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, count - 0.5, len(run.lanes) - 0.5, -0.5),
    )
    below.set_ylabel("requests")
    below.set_xlabel("step")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.xaxis.set_major_formatter(lambda x, _: f"{numbers[int(x)]}" if 0 <= x < count else "")
    if len(run.lanes) <= 20:
        below.set_yticks(range(len(run.lanes)), [lane.name for lane in run.lanes], fontsize=7)
    for axes in (above, middle, below):
        axes.spines[["top", "right"]].set_visible(False)
        if shown is not None:
            axes.axvspan(shown - 0.5, shown + 0.5, color="#1976d2", alpha=0.25)
    names = [(c, n) for c, n in (*_STATES.values(), *_WORK.values()) if c in seen]
    patches = [Patch(color=colour, label=name) for colour, name in names]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=7, frameon=False)


def _lanes(run: RunLog) -> tuple[np.ndarray[Any, Any], set[str]]:
    """Return the lanes as a picture [lanes, steps, 3] and the colours in it."""
    count, columns = run.num_columns, run.columns
    picture = np.full((len(run.lanes), count, 3), 255, np.uint8)
    seen: set[str] = set()
    latest: dict[int, tuple[int, int]] = {}  # by lane: the column since when, the state
    changes = zip(
        columns["change_lane"], columns["change_column"], columns["change_state"], strict=True
    )
    ends = [(lane.number, count, State.ENDED) for lane in run.lanes]
    for lane, column, state in (*changes, *ends):
        since, before = latest.get(lane, (column, State.ENDED))
        if before != State.ENDED and since < column:
            colour = _STATES[State(before)][0]
            picture[lane, since:column] = rgb(colour)
            seen.add(colour)
        latest[lane] = column, state
    at = np.repeat(np.arange(count), np.array(columns["step_rows"]))
    lanes, work = np.array(columns["row_lane"]), np.array(columns["row_work"])
    for kind, (colour, _) in _WORK.items():
        chosen = work == kind
        if chosen.any():
            picture[lanes[chosen], at[chosen]] = rgb(colour)
            seen.add(colour)
    return picture, seen
