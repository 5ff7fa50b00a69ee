"""`DeviceSlots`: which adapters are on the device, and who makes room for whom.

The least recently used adapter that nobody needs now and that is not pinned leaves first, and those
that requests wait for leave last. What is needed is not counted but asked for anew at every step,
from the sequences that run: nothing can be held by a request that is gone. On a GPU adapters are
brought beside the passes that run. Called by the manager.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from workbench.lora.moves import Move, Mover
from workbench.lora.packing import Packed, Packer
from workbench.lora.pool import RankPool, Resident
from workbench.lora.store import AdapterStore, Entry
from workbench.lora.table import Uses, VariantTable

_FIRST_ROWS = 32


@dataclass(slots=True)
class Room:
    """Rank rows to be given out: `free` ones, and those of idle adapters, spare (rank, place in
    line of the first who waits for it, infinite if nobody does), of which the last goes first."""

    free: int
    spare: list[tuple[int, float]]

    def take(self, rank: int, place: int | None = None) -> int:
        """Take rows if there are enough; return how many lack. place: where in line those are who
        want them, if they may have what others behind them wait for."""
        short, left = rank - self.free, len(self.spare)
        while short > 0 and left:
            held, waits = self.spare[left - 1]
            if waits <= (sys.maxsize if place is None else place):
                break
            short, left = short - held, left - 1
        if short <= 0:
            self.free = -short
            del self.spare[left:]
        return max(short, 0)

    def close(self) -> None:
        """Keep what is left."""
        self.free, self.spare = 0, []


class DeviceSlots:
    """The rank rows and the variants. num_rows: None has as many rows as were ever needed."""

    def __init__(self, packer: Packer, store: AdapterStore, num_rows: int | None) -> None:
        self.store, self.bounded = store, num_rows is not None
        self.pool = RankPool(packer, num_rows or 0)
        self.table = VariantTable(packer.model.device)
        self.needed: set[str] = set()
        self.wanted: Mapping[str, int] = {}  # by those who wait: the place of the first in line
        self._placed: dict[str, Entry] = {}  # on the device, or on their way there
        self.mover = Mover(self.pool)
        self.beside = packer.model.device.type == "cuda"  # whether passes run meanwhile

    @property
    def generation(self) -> tuple[int, int]:
        """Changes when a captured pass would read what is no longer there."""
        return self.pool.generation, self.table.generation

    def need(self, names: Iterable[str]) -> None:
        """Say which adapters must stay: those of the sequences that run."""
        self.needed = set(names)
        for name in names:
            self.store.touch(self.store.entries[name])

    def running(self) -> list[Entry]:
        """Return the adapters that must stay."""
        return [entry for name, entry in self._placed.items() if name in self.needed]

    def room(self) -> Room:
        """Return what there is to give to adapters that are not here."""
        if not self.bounded:
            return Room(sys.maxsize, [])
        spare = [(entry.rank, self._place(entry)) for entry in self._evictable()]
        return Room(self.pool.num_free, spare[::-1])

    def _place(self, entry: Entry) -> float:
        return self.wanted.get(entry.name, math.inf)

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
            for victim in self._evictable():
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
        self._placed[entry.name] = entry
        self.mover.totals.held_up += time.perf_counter() - begin
        return victims

    def arrived(self) -> list[tuple[Entry, Move]]:
        """Return the adapters that have come to the device since this was last asked."""
        found = []
        for entry in list(self._placed.values()):
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
            del self._placed[entry.name]
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
        for entry in list(self._placed.values()):
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
        del self._placed[entry.name]

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
        found = [(e, e.resident) for e in self._placed.values() if e.resident is not None]
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
        """Return the adapters that may leave: first those that nobody waits for, the least used
        first, then those whose first one in line comes last."""
        may = [
            entry
            for entry in self._placed.values()
            if entry.resident is not None and not entry.pinned and entry.name not in self.needed
        ]
        return sorted(may, key=lambda entry: (-self._place(entry), entry.last_used))
