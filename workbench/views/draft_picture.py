"""The still picture of `SpeculationTree`, for readers without the widget.

One draft's tree, in the widget's colours, and acceptance by position over the whole run.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isnan
from typing import TYPE_CHECKING

from workbench.views.drafts import Draft

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TAKEN, _ADDED = "#009E73", "#0072B2"


def draw_draft(
    figure: Figure,
    draft: Draft | None,
    acceptance: list[tuple[int, int]],
    text_of: Callable[[int], str],
) -> None:
    """Draw a draft's tree, and the acceptance of each position over the run."""
    left, right = figure.subplots(1, 2, width_ratios=(4, 1))
    left.set_axis_off()
    if draft is None:
        left.text(0.5, 0.5, "This step verified no draft.", ha="center", transform=left.transAxes)
    else:
        _tree(left, draft, text_of)
    positions = range(1, len(acceptance) + 1)
    right.barh(positions, [100 * yes / tried for tried, yes in acceptance], color=_TAKEN)
    right.set_yticks(positions, [f"{k} (n={n})" for k, (n, _) in enumerate(acceptance, 1)])
    right.invert_yaxis()
    right.set_xlim(0, 100)
    right.set_xlabel("accepted, %")
    right.set_ylabel("draft position")
    right.spines[["top", "right"]].set_visible(False)


def _tree(axes: Axes, draft: Draft, text_of: Callable[[int], str]) -> None:
    """Draw the tree: node 0 is the token before the draft, the last one what the model added."""
    parents = [-1, *(parent + 1 for parent in draft.parents)]
    path = [0, *(node + 1 for node in draft.path), len(parents)]
    parents.append(path[-2])
    depths, rows = [0, *draft.depths, len(draft.path) + 1], _rows(parents, path)
    texts = [draft.lane.name, *(_shown(text_of, token) for token in draft.token_ids)]
    texts.append(_shown(text_of, draft.bonus))
    looks = [("#E8E8E8", "black")] + [("white", "#707070")] * len(draft.parents)
    looks.append((_ADDED, "white"))
    for node in path[1:-1]:
        looks[node] = _TAKEN, "white"
    shares = ["", *("" if isnan(p) else f" {p:.2f}" for p in draft.probabilities), ""]
    for node, (fill, ink) in enumerate(looks):
        parent = parents[node]
        if parent >= 0:
            colour = "#AAAAAA" if fill == "white" else fill
            ends = [depths[parent], depths[node]], [rows[parent], rows[node]]
            axes.plot(*ends, color=colour, linewidth=1 if fill == "white" else 2, zorder=1)
        axes.text(
            depths[node],
            rows[node],
            texts[node] + shares[node],
            color=ink,
            bbox={"boxstyle": "round,pad=0.3", "facecolor": fill, "edgecolor": "#909090"},
            ha="center",
            va="center",
            family="monospace",
            fontsize=8,
        )
    axes.set_xlim(-0.5, max(depths) + 0.5)
    axes.set_ylim(max(rows) + 0.6, -0.6)
    axes.set_title(f"step {draft.step}: {draft.proposer} for {draft.lane.name}", fontsize=9)


def _rows(parents: list[int], path: list[int]) -> list[int]:
    """Return the row of each node: leaves one below the other, a parent beside its first child, and
    the path on top."""
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents[1:], 1):
        children[parent].append(node)
    for below in children:
        below.sort(key=lambda node: node not in path)
    rows, height, waiting, order = [0] * len(parents), 0, [0], []
    while waiting:
        order.append(node := waiting.pop())
        waiting += reversed(children[node])
        if not children[node]:
            rows[node], height = height, height + 1
    for node in reversed(order):
        if children[node]:
            rows[node] = rows[children[node][0]]
    return rows


def _shown(text_of: Callable[[int], str], token_id: int) -> str:
    return text_of(token_id).replace("\n", "↵").replace(" ", "·")[:8]
