"""`KVCacheView`: every block of the KV cache, at every step, and why a prefix was found or not.

A cell per block and host slot, coloured by sequence, filled as far as tokens are in it, marked
where it is shared, cached and free, copied on write, evicted, offloaded. Hover for owners, tokens,
hashes; click for a sequence's block table; scrub without a kernel. `KVLog` makes what it sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from workbench.trace.layout import CacheLayout
from workbench.views.base import View
from workbench.views.esm import compose
from workbench.views.kv_log import SERIES, KVLog
from workbench.views.kv_picture import draw_blocks, draw_use

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class KVCacheView(View):
    """Shows a trace's KV cache; see `View` for what it can be made from.

    `usage()` and `lookups()` return what it shows as tables.
    """

    _esm = compose("kv_cache")
    PICTURE_INCHES = (9.0, 4.6)

    about = traitlets.Dict().tag(sync=True)
    history = traitlets.Bytes().tag(sync=True)  # most of the log, and
    tail = traitlets.Bytes().tag(sync=True)  # what came since

    def reset(self) -> None:
        """Begin anew, with another trace."""
        self._kv: KVLog | None = None
        self._taken = 0  # events of the trace that are in the log

    def update(self) -> tuple[int, int]:
        """Take in what the trace has got; return the first and last step."""
        if self._kv is None:
            if not len(self.trace):
                return 0, 0
            self._kv = KVLog(self.trace.layout, self.trace.piece_of)
        kv, end = self._kv, len(self.trace.events)
        kv.take(self.trace.events[self._taken : end])
        self._taken = end
        old, new = kv.log.parts()
        with self.hold_sync():
            self.about = {"first_step": kv.first_step, **_sizes(kv.layout)}
            self.history, self.tail = old, new
        return kv.first_step, kv.last_step

    def opening_step(self) -> int:
        """Return the step with most blocks in use: at the beginning and the end there are none."""
        if self.live or self._kv is None:
            return self.step
        return self._kv.first_step + int(self._kv.log.numbers("used").argmax())

    def usage(self) -> pd.DataFrame:
        """Return blocks used, cached and shared, tokens held and host slots used, by step."""
        import pandas as pd

        if self._kv is None:
            return pd.DataFrame(columns=SERIES)
        kv = self._kv
        steps = pd.RangeIndex(kv.first_step, kv.first_step + kv.num_rows, name="step")
        return pd.DataFrame({name: kv.log.numbers(name) for name in SERIES}, index=steps)

    def lookups(self) -> pd.DataFrame:
        """Return every prefix lookup: its step, request, tokens found of how many, and why."""
        import pandas as pd

        columns = ("step", "request_id", "sequence_id", "found", "tokens", "reason")
        if self._kv is None:
            return pd.DataFrame(columns=columns)
        log = self._kv.log
        rows = log.numbers("lookup_sequence")
        values = (
            log.numbers("lookup_row") + np.uint32(self._kv.first_step),
            [log.lists["request_ids"][row] for row in rows],
            log.numbers("sequence_ids")[rows],
            log.numbers("lookup_tokens"),
            log.numbers("lookup_total"),
            log.lists["lookup_reasons"],
        )
        return pd.DataFrame(dict(zip(columns, values, strict=True)))

    def summary(self) -> str:
        """Return the use of the cache at the step shown."""
        kv = self._kv
        if kv is None:
            return "KV cache: nothing has been recorded yet"
        row = max(0, min(kv.num_rows - 1, self.step - kv.first_step))
        now = {name: int(kv.log.columns[name][row]) for name in SERIES}
        blocks = kv.layout.num_blocks
        text = (
            f"KV cache at step {self.step} of {kv.last_step}: {now['used']} of {blocks} blocks used"
            f" ({now['shared']} shared), {now['cached']} cached and free,"
            f" {now['tokens_held']} tokens held"
        )
        slots = kv.layout.num_slots
        return f"{text}, host {now['slots_used']} of {slots} slots" if slots else text

    def draw(self, figure: Figure) -> None:
        """Draw the blocks at the step shown, and use over time."""
        if self._kv is None:
            figure.text(0.5, 0.5, self.summary(), ha="center")
            return
        above, below = figure.subplots(2, 1, height_ratios=(3, 1))
        draw_blocks(above, self._kv, self.step)
        draw_use(below, self._kv, self.step)


def _sizes(layout: CacheLayout) -> dict[str, Any]:
    groups = [
        {
            "first": group.first_block,
            "count": group.num_blocks,
            "title": f"KV group {place}, "
            + ("all tokens" if group.window is None else f"a window of {group.window} tokens"),
        }
        for place, group in enumerate(layout.groups)
    ]
    return {
        "block_size": layout.block_size,
        "num_blocks": layout.num_blocks,
        "num_slots": layout.num_slots,
        "groups": groups,
    }
