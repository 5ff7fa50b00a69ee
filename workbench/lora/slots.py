"""`DeviceSlots`: which adapters are on the device, and who makes room for whom.

The least recently used adapter that nobody needs now and that is not pinned leaves first. What is
needed is not counted but asked for anew at every step, from the sequences that run: nothing can be
held by a request that is gone. Called by the manager.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

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
        if entry.resident is not None or not self.bounded:
            return True
        spare = sum(len(e.resident.rows) for e in self._evictable() if e.resident is not None)
        return self.pool.num_free + spare >= entry.rank

    def put(self, entry: Entry, packed: Packed) -> list[Entry]:
        """Write an adapter to the device, for which `has_room`; return who made way for it."""
        victims = []
        begin = time.perf_counter()
        if not self.bounded:
            lacking = entry.rank - self.pool.num_free
            if lacking > 0:
                rows = self.pool.num_rows
                self.pool.grow(max(rows + lacking, 2 * rows, _FIRST_ROWS))
        for victim in self._evictable():
            if self.pool.num_free >= entry.rank:
                break
            self.evict(victim)
            victims.append(victim)
        entry.resident = self.pool.put(packed)
        entry.seconds["to device"] = time.perf_counter() - begin
        return victims

    def evict(self, entry: Entry) -> None:
        """Take an adapter off the device."""
        assert entry.resident is not None, "it is not on the device"
        self.table.forget(entry.name)
        self.pool.free(entry.resident)
        entry.resident = None

    def resize(self, num_rows: int) -> list[Entry]:
        """Have more rank rows or fewer, in which pinned and needed adapters have room; return who
        left for it."""
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
