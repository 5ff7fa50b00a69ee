"""`KVLog`: a trace as the KV cache view's log, step by step and as the trace grows.

A step's changes are XOR masks on cells (`kv_cells`), so that the browser runs them both ways.
Beside them: who held which block from when to when, what blocks could be found by, what happened in
each step, and prefix lookups. Replaying is `workbench.trace`'s; this only writes down what changed.
`js/kv_log.js` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from workbench import events
from workbench.events import Event
from workbench.trace.apply import apply
from workbench.trace.layout import CacheLayout
from workbench.trace.replay import BlockChange, BlockDiff
from workbench.trace.state import BlockState, ReplayedState
from workbench.views import sequence_columns
from workbench.views.kv_cells import block_cell, owner_of, slot_cell
from workbench.views.kv_host import HostSlots
from workbench.views.sequence_columns import SequenceColumns
from workbench.views.wire import GrowingLog, Numbers

# What happened to a place in a step, as bits; js/kv_log.js has the same order.
MARKS = ("new", "hit", "copied", "evicted", "offloaded", "restored")
_NOTHING = 0xFFFFFFFF  # no other place or sequence has to do with a mark
SERIES = ("used", "cached", "shared", "tokens_held", "slots_used")  # counts after each step
_COLUMNS = {
    **sequence_columns.COLUMNS,
    **dict.fromkeys(("changes", "places", "masks", *SERIES), "I"),
    **dict.fromkeys(("hold_place", "hold_sequence", "hold_index", "hold_from"), "I"),
    **dict.fromkeys(("end_hold", "end_row"), "I"),
    **dict.fromkeys(("name_place", "name_row", "name_hash"), "I"),
    **dict.fromkeys(("marks", "mark_place", "mark_other"), "I"),
    **dict.fromkeys(("lookup_row", "lookup_sequence", "lookup_tokens", "lookup_total"), "I"),
    "mark_bits": "B",
}
_LISTS = (*sequence_columns.LISTS, "lookup_reasons")


class KVLog:
    """Takes events in order; `log` is what it has written down.

    Rows are steps: row 0 is the state that the trace begins with, `first_step`; a step that was not
    committed looks like the one before.
    """

    def __init__(self, layout: CacheLayout, piece_of: Callable[[int], str | None]) -> None:
        self.layout, self.first_step = layout, 0
        self.log = GrowingLog(_COLUMNS, _LISTS)
        self.sequences = SequenceColumns(self.log, piece_of)
        self._state, self._diff = ReplayedState(layout), BlockDiff(layout)
        self._cells = [0] * (layout.num_blocks + layout.num_slots)
        self._counts = dict.fromkeys(SERIES, 0)
        self._holds: dict[tuple[int, int], int] = {}  # (block, sequence) -> its open hold
        self._marks: dict[int, tuple[int, int]] = {}  # place -> bits, other; of the step under way
        self._slots = HostSlots()
        self._grown: set[int] = set()  # sequences with new tokens
        self._begun = False

    @property
    def num_rows(self) -> int:
        """Steps written down, the state before the first one included."""
        return len(self.log.columns["changes"])

    @property
    def last_step(self) -> int:
        """The last committed step."""
        return self.first_step + max(0, self.num_rows - 1)

    def take(self, facts: Iterable[Event]) -> None:
        """Take in the next events; `TraceError` if they do not follow from those before."""
        for event in facts:
            if not self._begun and not isinstance(event, events.StateSeen):
                self._begin(max(0, event.step - isinstance(event, events.StepPlanned)))
            self._slots.note(event, self._state)
            apply(self._state, event)
            self._note(event)
            if isinstance(event, events.StateSeen):
                self._grown.update(self._state.sequences)
                self._begin(event.step)
            elif isinstance(event, events.StepDone):
                self._grown.update(number for number, _ in event.tokens)
                while self.last_step < event.step - 1:
                    self._close_row([])  # planned, and never committed
                self._close_row(self._diff.changes(self._state))

    def cells(self, step: int) -> Numbers:
        """Return the cells after a step, uint32 [blocks + slots]."""
        row = max(0, min(self.num_rows - 1, step - self.first_step))
        end = int(self.log.numbers("changes")[: row + 1].sum())
        cells = np.zeros(len(self._cells), np.uint32)
        places, masks = self.log.numbers("places")[:end], self.log.numbers("masks")[:end]
        np.bitwise_xor.at(cells, places, masks)
        return cells

    # --- within a step: what the state after it does not show ------------------------------------

    def _note(self, event: Event) -> None:
        match event:
            case events.BlockAllocated():
                self._mark(event.block_id, "new")
            case events.BlockShared():
                self._mark(event.block_id, "hit")
            case events.BlockCopied():
                self._mark(event.block_id, "copied", event.source)
            case events.BlockEvicted():
                self._mark(event.block_id, "evicted", event.for_sequence_id)
            case events.BlockOffloaded():
                slot = self.layout.num_blocks + event.slot
                self._mark(event.block_id, "offloaded", slot)
                self._mark(slot, "offloaded", event.block_id)
            case events.BlockRestored():
                slot = self.layout.num_blocks + event.slot
                self._mark(event.block_id, "restored", slot)
                self._mark(slot, "restored", event.block_id)
            case events.PrefixHit() | events.PrefixMiss():
                self._looked_up(event)
            case events.RequestAdded() | events.SequenceForked() | events.SequenceExtended():
                self._grown.add(event.sequence_id)
            case _:
                pass

    def _mark(self, place: int, what: str, other: int | None = None) -> None:
        bits, before = self._marks.get(place, (0, _NOTHING))
        bits |= 1 << MARKS.index(what)
        self._marks[place] = bits, before if other is None else other

    def _looked_up(self, event: events.PrefixHit | events.PrefixMiss) -> None:
        found = event.num_tokens if isinstance(event, events.PrefixHit) else 0
        columns = self.log.columns
        columns["lookup_row"].append(self.num_rows)
        columns["lookup_sequence"].append(self.sequences.row(event.sequence_id, self._state))
        columns["lookup_tokens"].append(found)
        columns["lookup_total"].append(event.num_prompt_tokens)
        self.log.lists["lookup_reasons"].append(event.reason)

    # --- after a step ----------------------------------------------------------------------------

    def _begin(self, step: int) -> None:
        self.first_step, self._begun = step, True
        self._slots.begin(self._state)
        self._close_row(self._diff.changes(self._state))

    def _close_row(self, changes: Sequence[BlockChange]) -> None:
        columns, before = self.log.columns, len(self.log.columns["places"])
        self.sequences.spell(sorted(self._grown), self._state)
        self._grown.clear()
        for change in changes:
            self._write(change)
        for slot in sorted(self._slots.changed):
            self._write_slot(slot)
        self._slots.changed.clear()
        for place, (bits, other) in sorted(self._marks.items()):
            columns["mark_place"].append(place)
            columns["mark_bits"].append(bits)
            columns["mark_other"].append(other)
        columns["marks"].append(len(self._marks))
        self._marks.clear()
        for name, count in self._counts.items():
            columns[name].append(count)
        columns["changes"].append(len(columns["places"]) - before)

    def _write(self, change: BlockChange) -> None:
        block, before, after = change
        columns = self.log.columns
        self._hold(change)
        if before.content_hash != after.content_hash:
            name = 0 if after.content_hash is None else int(after.content_hash[:8], 16)
            columns["name_place"].append(block)
            columns["name_row"].append(self.num_rows)
            columns["name_hash"].append(name)
        self._count(before, -1)
        self._count(after, 1)
        owner: int | None = None
        if after.owners:
            owner = self.sequences.row(after.owners[0], self._state)
        elif after.content_hash is not None:
            owner = owner_of(self._cells[block])  # whose content it still is
        self._flip(block, block_cell(after, owner, self.layout.block_size))

    def _hold(self, change: BlockChange) -> None:
        """Write down who took the block and who gave it up."""
        block, before, after = change
        columns, row = self.log.columns, self.num_rows
        if before.position != after.position:  # it left its sequences for others, or the same
            gone, come = before.owners, after.owners
        elif before.owners == after.owners:
            return
        else:
            old, new = set(before.owners), set(after.owners)  # a prefix may have hundreds
            gone = tuple(owner for owner in before.owners if owner not in new)
            come = tuple(owner for owner in after.owners if owner not in old)
        for owner in gone:
            columns["end_hold"].append(self._holds.pop((block, owner)))
            columns["end_row"].append(row)
        for owner in come:
            self._holds[block, owner] = len(columns["hold_place"])
            columns["hold_place"].append(block)
            columns["hold_sequence"].append(self.sequences.row(owner, self._state))
            columns["hold_index"].append(after.position)
            columns["hold_from"].append(row)

    def _count(self, block: BlockState, by: int) -> None:
        counts = self._counts
        if block.references:
            counts["used"] += by
            counts["shared"] += by * (block.references > 1)
            counts["tokens_held"] += by * block.fill
        elif block.content_hash is not None:
            counts["cached"] += by

    def _write_slot(self, slot: int) -> None:
        state, place = self._state, self.layout.num_blocks + slot
        keeper = self._slots.keeper(slot)
        row = None if keeper is None else self.sequences.row(keeper, state)
        content, holds = state.slot_contents[slot], state.slot_holds[slot]
        cell = slot_cell(content, holds, row, self.layout.block_size)
        self._counts["slots_used"] += bool(cell) - bool(self._cells[place])
        self._flip(place, cell)

    def _flip(self, place: int, cell: int) -> None:
        if cell != self._cells[place]:
            self.log.columns["places"].append(place)
            self.log.columns["masks"].append(cell ^ self._cells[place])
            self._cells[place] = cell
