"""`BatchTimeline`: steps across, requests down: who ran what in which step, who waited, and why.

Above, two strips: the tokens of each batch against the budget, and the time of each step by parts.
A click or Enter on a step lists its packed batch, token by token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import traitlets

from workbench.async_engine import AsyncEngine
from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.trace import Trace
from workbench.views.batch_picture import draw_batches
from workbench.views.esm import compose
from workbench.views.lane import Work
from workbench.views.run_columns import PARTS
from workbench.views.run_view import RunView

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

AXES = ("steps", "ms")


class BatchTimeline(RunView):
    """Shows the batches of a run; see `View` for what it can be made from.

    axis: what lies across, `steps` or `ms` from the first one. `steps()` and `rows(step)` return
    what it shows as tables.
    """

    _esm = compose("batch_timeline")
    GROUPS = ("sequences", "batches", "drafts")

    axis = traitlets.Unicode("steps").tag(sync=True)
    batches_old = traitlets.Bytes().tag(sync=True)
    batches_new = traitlets.Bytes().tag(sync=True)
    drafts_old = traitlets.Bytes().tag(sync=True)
    drafts_new = traitlets.Bytes().tag(sync=True)

    def __init__(
        self,
        source: Trace | Engine | AsyncEngine | None = None,
        *,
        axis: str = "steps",
    ) -> None:
        """Raise `ConfigError` for a source or an axis that is none."""
        if axis not in AXES:
            raise ConfigError("axis", axis, "is no axis", f"One of {', '.join(AXES)}.")
        self.axis = axis  # before it is sent
        super().__init__(source)

    def summary(self) -> str:
        """Return a sentence on the step shown."""
        column = self.run.column_of(self.step)
        if column is None:
            return "no step yet" if not self.run.num_columns else "before the first step"
        columns, rows = self.run.columns, self.run.rows_of(column)
        work = [Work(columns["row_work"][row]) for row in rows]
        kinds = ", ".join(
            f"{work.count(kind)} {kind.name.lower()}" for kind in Work if kind in work
        )
        tokens = sum(columns["row_num"][row] for row in rows)
        budget = self.trace.header.get("max_batch_tokens")
        of = f" of at most {budget}" if budget else ""
        seconds = sum(columns[f"step_{part}"][column] for part in (*PARTS, "other"))
        return (
            f"step {columns['step_number'][column]} of {self.last_step}: {tokens}{of} tokens in "
            f"{len(rows)} rows ({kinds or 'nothing to run'}), "
            f"{columns['step_waiting'][column]} waiting, {1e3 * seconds:.1f} ms"
        )

    def draw(self, figure: Figure) -> None:
        """Draw all steps, with a mark at the one shown."""
        draw_batches(figure, self.run, self.run.column_of(self.step), self.trace.header)

    def steps(self) -> DataFrame:
        """Return a table of the steps: rows, tokens, queue, free blocks, milliseconds by part."""
        from pandas import DataFrame

        columns = self.run.columns
        names = ("rows", "waiting", "running", "free")
        table = {name: list(columns[f"step_{name}"]) for name in names}
        spans = [self.run.rows_of(column) for column in range(self.run.num_columns)]
        table["tokens"] = [sum(columns["row_num"][row] for row in rows) for rows in spans]
        for part in (*PARTS, "other", "device"):
            table[f"{part}_ms"] = [1e3 * seconds for seconds in columns[f"step_{part}"]]
        return DataFrame(table, index=list(columns["step_number"])).rename_axis("step")

    def rows(self, step: int | None = None) -> DataFrame:
        """Return a table of a step's packed batch (None: of the step shown).

        Raises `ConfigError` for a step that was not committed in this trace.
        """
        from pandas import DataFrame

        step = self.step if step is None else step
        column, columns = self.run.column_of(step), self.run.columns
        if column is None or columns["step_number"][column] != step:
            first, last = self.run.bounds
            raise ConfigError("step", step, "was not committed", f"One from {first} to {last}.")
        names = ("start", "num", "at", "made", "drafted", "accepted")
        table = [
            {
                "request": self.run.lanes[columns["row_lane"][row]].name,
                "work": Work(columns["row_work"][row]).name.lower(),
                **{name: columns[f"row_{name}"][row] for name in names},
            }
            for row in self.run.rows_of(column)
        ]
        return DataFrame(table, columns=["request", "work", *names])
