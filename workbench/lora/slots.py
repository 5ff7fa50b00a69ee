"""`DeviceSlots`: which adapters are on the device, and who makes room for whom.

The least recently used adapter that nobody needs now and that is not pinned leaves first, and those
that requests wait for leave last. What is needed is not counted but asked for anew at every step,
from the sequences that run: nothing can be held by a request that is gone. On a GPU adapters are
brought beside the passes that run. Called by the manager.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from workbench.lora.moves import Move, Mover
from workbench.lora.packing import Packed, Packer
from workbench.lora.pool import RankPool, Resident
from workbench.lora.store import AdapterStore, Entry
from workbench.lora.table import Uses, VariantTable

_FIRST_ROWS = 32


class DeviceSlots:
    """The rank rows and the variants. num_rows: None has as many rows as were ever needed."""

    def __init__(self, packer: Packer, store: AdapterStore, num_rows: int | None) -> None:
        self.store, self.bounded = store, num_rows is not None
        self.pool = RankPool(packer, num_rows or 0)
        self.table = VariantTable(packer.model.device)
        self.needed: set[str] = set()
        self.wanted: Callable[[], Iterable[str]] = tuple  # by requests that have not ended
        self.mover = Mover(self.pool)
        self.beside = packer.model.device.type == "cuda"  # whether passes run meanwhile

    @property
    def generation(self) -> tuple[int, int]:
        """Changes when a captured pass would read what is no longer there."""
        return self.pool.generation, self.table.generation

    def need(self, names: Iterable[str]) -> None:
        """Say which adapters must stay: those of the sequences that run."""
        self.needed = set(names)

    def spare_rows(self, besides: Collection[str] = ()) -> int:
        """Return how many rank rows are left beside pinned adapters and these."""
        held = [e.rank for e in self.store.entries.values() if e.pinned or e.name in besides]
        return self.pool.num_rows - sum(held)

    def has_room(self, entry: Entry) -> bool:
        """Whether an adapter is on the device, or others can make way for it."""
        if entry.resident is not None or entry.moving is not None or not self.bounded:
            return True
        spare = sum(len(e.resident.rows) for e in self._evictable() if e.resident is not None)
        return self.pool.num_free + spare >= entry.rank

    def put(self, entry: Entry, packed: Packed, cause: str, *, wait: bool) -> list[Entry]:
        """Bring an adapter to the device, for which `has_room`; return who made way for it.

        It is there at once if `wait` is true or nothing runs beside; else `arrived` says when.
        """
        victims, begin = [], time.perf_counter()
        if not self.bounded:
            lacking = entry.rank - self.pool.num_free
            if lacking > 0:
                self.settle()
                rows = self.pool.num_rows
                self.pool.grow(max(rows + lacking, 2 * rows, _FIRST_ROWS))
        if self.pool.num_free < entry.rank:
            wanted = set(self.wanted())  # those who wait would have it brought again
            for victim in sorted(self._evictable(), key=lambda e: e.name in wanted):
                if self.pool.num_free >= entry.rank:
                    break
                self.evict(victim)
                victims.append(victim)
        source, place = entry.tier, self.pool.take(packed)
        if wait or not self.beside:
            entry.resident = self.pool.write(place)
            self._arrive(entry, time.perf_counter() - begin)
        else:
            entry.moving = self.mover.start(place, source, cause)
        self.mover.totals.held_up += time.perf_counter() - begin
        return victims

    def arrived(self) -> list[tuple[Entry, Move]]:
        """Return the adapters that have come to the device since this was last asked."""
        found = []
        for entry in self.store.entries.values():
            move = entry.moving
            if move is not None and move.arrival.done():
                self.finish(entry)
                found.append((entry, move))
        return found

    def finish(self, entry: Entry) -> None:
        """Wait until an adapter that is on its way is on the device."""
        assert entry.moving is not None, "it is on its way"
        move, entry.moving = entry.moving, None
        begin = time.perf_counter()
        try:
            entry.resident, seconds = move.arrival.result()
        except BaseException:
            self.pool.free(move.place.rows)
            raise
        self._arrive(entry, seconds)
        self.mover.totals.held_up += time.perf_counter() - begin

    def _arrive(self, entry: Entry, seconds: float) -> None:
        entry.seconds["to device"] = seconds
        totals = self.mover.totals
        totals.count, totals.num_bytes = totals.count + 1, totals.num_bytes + entry.num_bytes
        totals.seconds += seconds

    def settle(self) -> None:
        """Wait for all that is on its way: rows are about to move."""
        for entry in self.store.entries.values():
            if entry.moving is not None:
                self.finish(entry)

    def evict(self, entry: Entry) -> None:
        """Take an adapter off the device, or from its way there."""
        if entry.moving is not None:
            self.finish(entry)
        assert entry.resident is not None, "it is not on the device"
        self.table.forget(entry.name)
        self.pool.free(entry.resident.rows)
        entry.resident = None

    def resize(self, num_rows: int) -> list[Entry]:
        """Have more rank rows or fewer, in which pinned and needed adapters have room; return who
        left for it."""
        self.settle()
        if num_rows >= self.pool.num_rows:
            self.pool.grow(num_rows)
            return []
        left = []
        for entry in self._evictable():
            if self.pool.num_rows - self.pool.num_free <= num_rows:
                break
            self.evict(entry)
            left.append(entry)
        found = [(e, e.resident) for e in self.store.entries.values() if e.resident is not None]
        for entry, _ in found:
            self.table.forget(entry.name)  # its rows have other numbers now
        moved = self.pool.shrink(num_rows, [resident for _, resident in found])
        for (entry, _), resident in zip(found, moved, strict=True):
            entry.resident = resident
        return left

    def places(self, wanted: list[Uses]) -> dict[Uses, int]:
        """Return where variants are in the table; their adapters are on the device."""
        return self.table.places(wanted, self.find)

    def find(self, name: str) -> Resident:
        """Return where an adapter is on the device."""
        resident = self.store.entries[name].resident
        assert resident is not None, "a running sequence's adapters are on the device"
        return resident

    def _evictable(self) -> list[Entry]:
        """Return the adapters that may leave, the least used first."""
        may = [
            entry
            for entry in self.store.entries.values()
            if entry.resident is not None and not entry.pinned and entry.name not in self.needed
        ]
        return sorted(may, key=lambda entry: entry.last_used)
