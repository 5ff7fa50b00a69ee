"""`AdapterStore`: the adapters an engine knows, in host memory or, if that is full, on disk alone.

Host memory is a bounded tier: the least recently used adapter that came from a folder, is not
pinned and is not on the device gives its copy up, and is read again when it is wanted. Reading
happens in a thread, so that a step need not wait for a disk.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakKeyDictionary

from workbench.errors import AdapterError
from workbench.lora.adapter import Adapter
from workbench.lora.moves import Move
from workbench.lora.packing import Packed, Packer
from workbench.lora.pool import Resident
from workbench.lora.reader import read_adapter
from workbench.lora.threads import in_the_background


@dataclass(slots=True)
class Entry:
    """An adapter under its name. packed: None where only the folder has it; resident: None where
    it is not on the device; moving: where it is on its way there. `leaving`: it goes as soon as
    nobody uses it. rescales: it is DoRA."""

    name: str
    digest: str
    rank: int
    num_bytes: int
    folder: Path | None
    packed: Packed | None
    stores_whole: bool = False
    rescales: bool = False
    resident: Resident | None = None
    moving: Move | None = None
    pinned: bool = False
    leaving: bool = False
    last_used: int = 0
    num_requests: int = 0
    hits: int = 0
    misses: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def tier(self) -> str:
        """Where it is: `device`, `host` or `disk`."""
        if self.resident is not None:
            return "device"
        return "disk" if self.packed is None else "host"


class AdapterStore:
    """Entries by name. host_bytes: what copies in host memory may take (None: any amount)."""

    def __init__(self, packer: Packer, max_rank: int, host_bytes: int | None) -> None:
        self.packer, self.max_rank, self.host_bytes = packer, max_rank, host_bytes
        self.entries: dict[str, Entry] = {}
        self._clock = itertools.count(1)
        self._threads: ThreadPoolExecutor | None = None
        self.reading: WeakKeyDictionary[Adapter, float] = (
            WeakKeyDictionary()
        )  # seconds that it took
        self._reading: dict[str, Future[tuple[str, Packed]]] = {}

    def touch(self, entry: Entry) -> None:
        """Note that an adapter is used now."""
        entry.last_used = next(self._clock)

    def add(self, entry: Entry) -> None:
        """Take an entry in, and let others' host copies go for it."""
        self.entries[entry.name] = entry
        self.touch(entry)
        self.shrink(keep=entry)

    @property
    def num_host_bytes(self) -> int:
        """Bytes of the copies in host memory."""
        return sum(e.num_bytes for e in self.entries.values() if e.packed is not None)

    def shrink(self, keep: Entry) -> list[Entry]:
        """Let the least used host copies go until they fit; return whose."""
        if self.host_bytes is None:
            return []
        dropped = []
        total = self.num_host_bytes
        for entry in sorted(self.entries.values(), key=lambda e: e.last_used):
            if total <= self.host_bytes:
                break
            spare = entry.packed is not None and entry.folder is not None
            if spare and not entry.pinned and entry is not keep:
                total -= entry.num_bytes
                entry.packed = None
                dropped.append(entry)
        return dropped

    def read(self, folder: Path) -> tuple[Adapter, Packed]:
        """Return the adapter of a folder, checked, hashed and packed, by any thread; `AdapterError`
        if it is none."""
        begin = time.perf_counter()
        with in_the_background():
            model, targets = self.packer.model, self.packer.targets
            adapter = read_adapter(folder, model, max_rank=self.max_rank, targets=targets)
            adapter = replace(adapter, folder=folder)
            packed = self.packer.pack(adapter)
            assert adapter.digest, "it is worked out here, where nobody waits for it"
        self.reading[adapter] = time.perf_counter() - begin
        return adapter, packed

    def _read_again(self, folder: Path) -> tuple[str, Packed]:
        adapter, packed = self.read(folder)
        return adapter.digest, packed

    def fetch(self, entry: Entry, *, wait: bool) -> Packed | None:
        """Return an adapter in host memory; None while a thread still reads it.

        Raises `AdapterError` if its folder cannot be read any more, or holds something else.
        """
        if entry.packed is not None:
            return entry.packed
        assert entry.folder is not None, "an adapter without a folder stays in host memory"
        future = self._reading.get(entry.name)
        if future is None:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(1, thread_name_prefix="adapters")
            future = self._threads.submit(self._read_again, entry.folder)
            self._reading[entry.name] = future
        if not wait and not future.done():
            return None
        del self._reading[entry.name]
        digest, packed = future.result()
        if digest != entry.digest:
            problem = f"has changed since it was loaded as {entry.name!r}"
            raise AdapterError(entry.folder, [problem], "Unload it and load it again.")
        entry.packed = packed
        self.shrink(keep=entry)
        return packed

    def remove(self, entry: Entry) -> None:
        """Forget an entry."""
        del self.entries[entry.name]
        self._reading.pop(entry.name, None)

    def close(self) -> None:
        """Forget every adapter and end the thread."""
        self.entries.clear()
        self._reading.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        del self.packer
