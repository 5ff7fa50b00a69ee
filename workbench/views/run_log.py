"""`RunLog`: what a trace says of sequences, steps, batches and drafts, as columns that grow.

One for all views of a trace. `RunWriter` writes the columns, `run_columns` explains them.
"""

from __future__ import annotations

from bisect import bisect_right
from weakref import WeakValueDictionary

from workbench.trace import Trace
from workbench.views.lane import Lane
from workbench.views.run_writer import RunWriter

_LOGS: WeakValueDictionary[int, RunLog] = WeakValueDictionary()


class RunLog:
    """lanes: a sequence each, in the order they came. logs: by group, what is sent; columns and
    lists: those of all groups by name."""

    def __init__(self, trace: Trace) -> None:
        """Read nothing yet."""
        self.trace = trace
        self._begin()

    def _begin(self) -> None:
        self._num_shortened = self.trace.num_shortened
        self._writer = RunWriter()
        self.lanes, self.logs = self._writer.lanes, self._writer.logs
        self.columns, self.lists = self._writer.columns, self._writer.lists
        self._num_read = 0
        self._explained: dict[str, int] = {}  # by column of token ids: how many were looked at
        self._unknown: set[int] = set()
        self._first_row = [0]  # of each step, and one more
        self._places: list[list[int]] = []  # of the tokens of each lane
        self._num_sorted = 0

    @classmethod
    def of(cls, trace: Trace) -> RunLog:
        """Return the log of a trace, the same one for all its views."""
        log = _LOGS.get(id(trace))  # whoever holds the log holds the trace
        if log is None:
            log = _LOGS[id(trace)] = cls(trace)
        return log

    def read(self) -> None:
        """Take in what the trace has got since; all of it anew where it has lost its beginning."""
        trace = self.trace
        if self._num_shortened != trace.num_shortened:
            self._begin()
        for place in range(self._num_read, len(trace.seconds)):  # an event comes before its time
            self._num_read = place + 1
            self._writer.take(trace.events[place], trace.seconds[place])
        self._explain("token_id", "top_id", "node_token", "draft_bonus")

    def _explain(self, *columns: str) -> None:
        """Write down the texts of token ids that were met; ask again for those nobody knows yet."""
        known = set(self.columns["known_ids"])
        for name in columns:
            self._unknown.update(self.columns[name][self._explained.get(name, 0) :])
            self._explained[name] = len(self.columns[name])
        for token_id in sorted(self._unknown - known):
            text = self.trace.piece_of(token_id)
            if text is not None:
                self.columns["known_ids"].append(token_id)
                self.lists["known_texts"].append(text)
        self._unknown.difference_update(self.columns["known_ids"])

    # --- reading ------------------------------------------------------------------------------

    @property
    def num_columns(self) -> int:
        """How many steps were committed."""
        return len(self.columns["step_number"])

    @property
    def bounds(self) -> tuple[int, int]:
        """The first and the last committed step; zeros before one."""
        numbers = self.columns["step_number"]
        return (numbers[0], numbers[-1]) if numbers else (0, 0)

    def column_of(self, step: int) -> int | None:
        """Return the column of the last step that is not after `step`; None before the first."""
        found = bisect_right(self.columns["step_number"], step)
        return found - 1 if found else None

    def rows_of(self, column: int) -> range:
        """Return the places of a step's rows."""
        while len(self._first_row) <= self.num_columns:
            self._first_row.append(
                self._first_row[-1] + self.columns["step_rows"][len(self._first_row) - 1]
            )
        return range(self._first_row[column], self._first_row[column + 1])

    def token_places(self, lane: Lane) -> list[int]:
        """Return the places in the token columns of a lane's tokens, by position."""
        parents, forked = self.columns["lane_parent"], self.columns["lane_forked"]
        self._sort_tokens()
        parts: list[list[int]] = []  # from the last positions to the first
        number, end = lane.number, lane.num_tokens
        while number >= 0:  # beams are forks of forks, as many as there are tokens
            start = forked[number] if parents[number] >= 0 else 0
            if start < end:
                parts.append(self._places[number][: end - start])
                end = start
            number = parents[number]
        return [place for part in reversed(parts) for place in part]

    def _sort_tokens(self) -> None:
        lanes = self.columns["token_lane"]
        self._places.extend([] for _ in range(len(self.lanes) - len(self._places)))
        for place in range(self._num_sorted, len(lanes)):
            self._places[lanes[place]].append(place)
        self._num_sorted = len(lanes)
