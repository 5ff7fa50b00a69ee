"""The KV cache view as a still picture: blocks at one step, and use over time.

For readers who have no running widget. It shows less: no marks of the step, no hover.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from workbench.views.kv_cells import taken_apart
from workbench.views.kv_log import KVLog
from workbench.views.picture import sequence_colours
from workbench.views.wire import Numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = 21  # sequences that look different, as in js/kv_grid.js
_NEUTRAL = 233


def colours(kv: KVLog, step: int) -> Numbers:
    """Return the colour of every block after a step, uint8 [blocks, 3]."""
    cells = taken_apart(kv.cells(step)[: kv.layout.num_blocks], kv.layout.block_size)
    hues = sequence_colours(_COLOURS)[np.maximum(cells.owner, 0) % _COLOURS].astype(np.float64)
    used = cells.references > 0
    # As full as it is coloured; cached and free between; blank not at all.
    strength = np.where(used, 0.28 + 0.72 * cells.fill, np.where(cells.findable, 0.4, 0.0))
    mixed = _NEUTRAL + (hues - _NEUTRAL) * strength[:, None]
    picture: Numbers = np.floor(mixed + 0.5).astype(np.uint8)
    return picture


def draw_blocks(axes: Axes, kv: KVLog, step: int) -> None:
    """Draw a step's blocks as a grid, wider than high, by number from the top left."""
    count = kv.layout.num_blocks
    columns = max(1, min(count, math.ceil(math.sqrt(count * 3.2))))
    rows = -(-count // columns)
    picture = np.full((rows * columns, 3), 255, np.uint8)
    picture[:count] = colours(kv, step)
    axes.imshow(picture.reshape(rows, columns, 3), interpolation="nearest", aspect="auto")
    if columns <= 128:
        for edge in np.arange(columns + 1) - 0.5:
            axes.axvline(edge, color="white", linewidth=0.6)
        for edge in np.arange(rows + 1) - 0.5:
            axes.axhline(edge, color="white", linewidth=0.6)
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"KV blocks after step {step}, coloured by sequence", loc="left", fontsize=9)
    for side in axes.spines.values():
        side.set_visible(False)


def draw_use(axes: Axes, kv: KVLog, step: int) -> None:
    """Draw blocks in use, blocks cached and free, and what the tokens in use would fill."""
    used, cached = kv.log.numbers("used"), kv.log.numbers("cached")
    held = kv.log.numbers("tokens_held") / kv.layout.block_size
    steps = kv.first_step + np.arange(kv.num_rows)
    axes.stackplot(steps, used, cached, colors=("#8fbce6", "#d0d0d0"), labels=("used", "cached"))
    axes.plot(steps, held, color="#222222", linewidth=1, label="tokens held, in blocks")
    axes.axvline(step, color="#D55E00", linewidth=1)
    axes.set(ylim=(0, kv.layout.num_blocks), xlim=(steps[0], max(steps[-1], steps[0] + 1)))
    axes.set_ylabel("blocks", fontsize=8)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, loc="upper right", ncols=3, framealpha=0.7)
