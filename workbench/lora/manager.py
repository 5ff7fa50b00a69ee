"""`LoRAManager`: the adapters of one engine: load, unload, pin, list, while requests run.

    loras = wb.LoRAManager(model)                 # or engine.loras, llm.loras
    loras.load("sql", "adapters/tinypy/lora/sql") # a folder that PEFT wrote
    engine.add(prompt, params, lora="sql:0.5")    # "sql:0.7+json:0.3" adds two up; not DoRA's

Weights are in three tiers: rank rows on the device (`slots`), host memory and disk (`store`). The
scheduler asks `gate` before it starts a sequence, the runner takes a batch from `batches` for each
pass. The model itself is never changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from workbench.config import require_positive
from workbench.describe import Described, human_bytes
from workbench.errors import AdapterInUse, ConfigError
from workbench.events import (
    AdapterLoaded,
    AdapterMoved,
    AdapterPinned,
    AdapterUnloaded,
    EventBus,
)
from workbench.lora.adapter import Adapter
from workbench.lora.batches import AdapterBatches
from workbench.lora.facts import Facts
from workbench.lora.gate import AdapterGate
from workbench.lora.info import AdapterInfo, info_of
from workbench.lora.names import check_name
from workbench.lora.packing import Packer
from workbench.lora.rows import check_rows
from workbench.lora.slots import DeviceSlots
from workbench.lora.store import AdapterStore, Entry
from workbench.lora.table import Uses
from workbench.lora.uses import check_uses, resolve_uses
from workbench.models import DecoderLM
from workbench.request import Request, Sequence

Sequences = list[Sequence]


class HasGate(Protocol):
    """The scheduler: it asks before a sequence starts."""

    adapters: Any

    @property
    def running(self) -> Sequences: ...

    @property
    def holding(self) -> Sequences: ...


class HasBatches(Protocol):
    """The runner: it takes a batch for each pass."""

    adapters: Any


class LoRAManager(Described):
    """The adapters over one model.

    num_rows: rank rows on the device; an adapter takes as many as its rank. None: as many as are
    loaded. host_bytes: of the copies in host memory (None: no bound). max_rank: what is refused
    above. root: the folder that adapters must lie in (None: any).
    """

    def __init__(
        self,
        model: DecoderLM,
        *,
        num_rows: int | None = None,
        host_bytes: int | None = None,
        max_rank: int = 256,
        root: str | Path | None = None,
    ) -> None:
        for name, value in (("lora_rows", num_rows), ("lora_host_bytes", host_bytes)):
            if value is not None:
                require_positive(name, value)
        require_positive("max_lora_rank", max_rank)
        self.model, self.max_rank = model, max_rank
        self.root = None if root is None else Path(root).resolve()
        packer = Packer(model)
        self.store = AdapterStore(packer, max_rank, host_bytes)
        self.slots = DeviceSlots(packer, self.store, num_rows)
        self.facts = Facts()
        self.gate = AdapterGate(self.store, self.slots, self.facts, self._settle)
        self.batches = AdapterBatches(self.slots)
        self.unfinished: Callable[[], Iterable[Request]] = tuple  # the engine says which

    # --- by hand ------------------------------------------------------------------------------

    def load(self, name: str, adapter: str | Path | Adapter, *, pin: bool = False) -> AdapterInfo:
        """Make an adapter known under a name: what PEFT or NeMo wrote, or an `Adapter`.

        It is read and checked now (see `read`), and goes to the device with the first request that
        names it, or at once if it is pinned. Raises `AdapterError` for what is wrong with it,
        `ConfigError` for a name that is taken, or an adapter larger than the device's rows.
        """
        begin = time.perf_counter()
        self.check_new(name)
        if not isinstance(adapter, Adapter):
            adapter = self.read(adapter)
        rows = self.slots.pool.num_rows
        if self.slots.bounded and adapter.rank > rows:
            fix = "Give the engine more lora_rows, or use a smaller adapter."
            raise ConfigError("adapter", name, f"takes {adapter.rank} of {rows} rank rows", fix)
        packed = self.store.packer.pack(adapter)
        sizes = adapter.digest, adapter.rank, packed.num_bytes
        entry = Entry(name, *sizes, adapter.folder, packed, bool(adapter.saved), adapter.rescales)
        self.store.add(entry)
        took = time.perf_counter() - begin
        entry.seconds["read"] = self.store.reading.get(adapter, took)
        facts = entry.digest, entry.rank, entry.num_bytes, entry.seconds["read"]
        self.facts.tell(AdapterLoaded, name, *facts)
        if pin:
            self.pin(name)
        return self.info(name)

    def check_new(self, name: str) -> None:
        """Raise `ConfigError` for a name that `load` would not take."""
        if check_name(name) in self.store.entries:
            raise ConfigError("adapter", name, "is loaded already", "Unload it first.")

    def read(self, path: str | Path) -> Adapter:
        """Return the adapter in a folder as `load` takes it, with nothing left to be done: for a
        thread of its own, so that requests run meanwhile. Raises what `load` does for a folder."""
        return self.store.read(self._folder(path))[0]

    def _folder(self, path: str | Path) -> Path:
        folder = Path(path).resolve()
        if self.root is not None and not folder.is_relative_to(self.root):
            problem = f"lies outside {self.root}, where adapters are to be"
            raise ConfigError("path", str(path), problem, "Move it there.")
        return folder

    def unload(self, name: str, *, wait: bool = False) -> None:
        """Forget an adapter. One that unfinished requests go through raises `AdapterInUse`; with
        `wait` it takes no new ones, and goes when these have ended."""
        entry = self._entry(name)
        users = [r.request_id for r in self.unfinished() if any(u.name == name for u in r.lora)]
        if not users:
            self._drop(entry)
        elif wait:
            entry.leaving = True
        else:
            raise AdapterInUse(name, users)

    def pin(self, name: str) -> None:
        """Put an adapter on the device, to stay; `ConfigError` if running ones fill it."""
        entry = self._entry(name)
        self.gate.look()
        self._check_pin(entry)
        if not self.gate.bring(entry, cause="asked", wait=True):
            fix = "Let requests end, or unpin another."
            raise ConfigError("adapter", name, "there is no room for it on the device", fix)
        entry.pinned = True
        self.facts.tell(AdapterPinned, name, True)

    def _check_pin(self, entry: Entry) -> None:
        """Raise `ConfigError` if requests could not run any more beside one more pinned adapter."""
        left = self.slots.spare_rows({entry.name})
        for request in self.unfinished() if self.slots.bounded else ():
            needed = {use.name for use in request.lora} - {entry.name}
            ranks = [e.rank for n in needed if not (e := self.store.entries[n]).pinned]
            if sum(ranks) > left:
                problem = f"request {request.request_id!r} would find no room beside it"
                raise ConfigError("adapter", entry.name, problem, "Let it end, or unpin another.")

    def unpin(self, name: str) -> None:
        """Let an adapter leave the device again when others need its room."""
        self._entry(name).pinned = False
        self.facts.tell(AdapterPinned, name, False)

    def evict(self, name: str) -> None:
        """Take an adapter off the device; `ConfigError` while it is pinned or running."""
        entry = self._entry(name)
        self.gate.look()
        if entry.pinned or name in self.slots.needed:
            raise ConfigError("adapter", name, "is pinned, or in use now", "Unpin it, or wait.")
        if entry.resident is not None or entry.moving is not None:
            self.slots.evict(entry)
            self.facts.tell(AdapterMoved, name, "device", entry.tier, "asked", (), 0.0)

    def check_rows(self, num_rows: int) -> None:
        """Raise `ConfigError` unless `resize` could leave so many rank rows."""
        self.gate.look()
        check_rows(num_rows, self.store, self.slots, self.unfinished())

    def resize(self, num_rows: int) -> None:
        """Have so many rank rows on the device, as `check_rows` allows; the least recently used
        adapters leave first. `Engine.rebalance` gives the memory to the cache, or takes it there.
        """
        self.check_rows(num_rows)
        for entry in self.slots.resize(num_rows):
            self.facts.tell(AdapterMoved, entry.name, "device", entry.tier, "room", (), 0.0)

    def info(self, name: str) -> AdapterInfo:
        """Return how an adapter stands; `ConfigError` for one that is not loaded."""
        self.gate.tally()
        return info_of(self._entry(name))

    def list(self) -> list[AdapterInfo]:
        """Return all adapters, as they stand, by name."""
        return [self.info(name) for name in sorted(self.store.entries)]

    def __len__(self) -> int:
        """How many adapters are loaded."""
        return len(self.store.entries)

    def __contains__(self, name: object) -> bool:
        """Whether an adapter is loaded."""
        return name in self.store.entries

    # --- for the engine -----------------------------------------------------------------------

    def attach(
        self,
        bus: EventBus,
        scheduler: HasGate,
        runner: HasBatches,
        unfinished: Callable[[], Iterable[Request]],
    ) -> None:
        """Serve an engine's parts. unfinished: returns the requests that have not ended."""
        self.facts.bus, self.unfinished = bus, unfinished
        scheduler.adapters.gate, runner.adapters = self.gate, self.batches
        self.gate.running = lambda: (*scheduler.running, *scheduler.holding)

    def resolve(self, text: str | None) -> Uses:
        """Return the adapters that a request's `lora` names; those times 0 are left out.

        Raises `RequestError` for a name that is not loaded, or a combination that cannot run.
        """
        return resolve_uses(text, self.store, self.slots)

    def count(self, uses: Uses) -> None:
        """Note that a request came that goes through these adapters."""
        for use in uses:
            self.store.entries[use.name].num_requests += 1

    def check_uses(self, uses: Uses) -> None:
        """Raise `RequestError` unless a request of another time finds its adapters as they were."""
        check_uses(uses, self.store, self.slots)

    # ------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return how many adapters are in which tier, and what they take."""
        if "store" not in vars(self):
            return {"closed": True}
        tiers = [entry.tier for entry in self.store.entries.values()]
        pool, totals = self.slots.pool, self.slots.mover.totals
        return {
            "adapters": len(tiers),
            **{tier: tiers.count(tier) for tier in ("device", "host", "disk")},
            "rank rows": f"{pool.num_rows - pool.num_free}/{pool.num_rows}",
            "device bytes": human_bytes(pool.num_bytes + self.slots.table.gains.num_bytes),
            "host bytes": human_bytes(self.store.num_host_bytes),
            "brought": f"{totals.count}, {totals.overlap:.0%} of the time beside steps",
        }

    def close(self) -> None:
        """Forget every adapter and give the memory back."""
        self.store.close()
        self.slots.mover.close()
        self.gate.close()
        del self.store, self.slots, self.gate, self.batches, self.model
        self.unfinished = tuple

    def _entry(self, name: str) -> Entry:
        entry = self.store.entries.get(name)
        if entry is None:
            known = ", ".join(sorted(self.store.entries)) or "none"
            raise ConfigError("adapter", name, "is not loaded", f"Loaded: {known}.")
        return entry

    def _settle(self) -> None:
        """Let those go that are leaving and that nobody uses any more."""
        if any(entry.leaving for entry in self.store.entries.values()):
            used = {use.name for request in self.unfinished() for use in request.lora}
            for entry in list(self.store.entries.values()):
                if entry.leaving and entry.name not in used:
                    self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        if entry.resident is not None or entry.moving is not None:
            self.slots.evict(entry)
        self.store.remove(entry)
        self.facts.tell(AdapterUnloaded, entry.name)
