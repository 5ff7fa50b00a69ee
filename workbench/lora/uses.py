"""From what a request says to the adapters it goes through, and what of that cannot run.

Asked by the manager when a request comes, or comes back from another time.
"""

from __future__ import annotations

from workbench.errors import RequestError
from workbench.lora.names import parse_uses
from workbench.lora.slots import DeviceSlots
from workbench.lora.store import AdapterStore, Entry
from workbench.lora.table import Uses
from workbench.request import AdapterUse


def resolve_uses(text: str | None, store: AdapterStore, slots: DeviceSlots) -> Uses:
    """Return the adapters that a request's `lora` names; those times 0 are left out.

    Raises `RequestError` for a name that is not loaded, or a combination that cannot run.
    """
    if text is None:
        return ()
    factors = parse_uses(text)
    for name in factors:
        entry = store.entries.get(name)
        if entry is None or entry.leaving:
            problem = "is being unloaded" if entry else "is not loaded"
            known = ", ".join(sorted(store.entries)) or "none"
            fix = f"Loaded: {known}. `llm.loras.load({name!r}, folder)` loads one."
            raise RequestError("lora", name, problem, fix)
    scales = {name: factor for name, factor in factors.items() if factor}
    entries = [store.entries[name] for name in scales]
    _check_room(text, entries, slots)
    _check_combination(text, entries, scales)
    return tuple(sorted(AdapterUse(e.name, scales[e.name], e.digest) for e in entries))


def check_uses(uses: Uses, store: AdapterStore, slots: DeviceSlots) -> None:
    """Raise `RequestError` unless a request of another time finds its adapters as they were, and
    room for them."""
    for use in uses:
        entry = store.entries.get(use.name)
        if entry is None or entry.digest != use.digest:
            problem = "is not loaded" if entry is None else "has other weights now"
            raise RequestError("lora", use.name, problem, "Load the adapter it was made with.")
    _check_room("+".join(use.name for use in uses), [store.entries[u.name] for u in uses], slots)


def _check_room(text: str, entries: list[Entry], slots: DeviceSlots) -> None:
    rows, taken = slots.spare_rows(), sum(e.rank for e in entries if not e.pinned)
    if slots.bounded and taken > rows:
        problem = f"takes {taken} of {rows} rank rows that are not pinned"
        raise RequestError("lora", text, problem, "Name fewer, or unpin some.")


def _check_combination(text: str, entries: list[Entry], scales: dict[str, float]) -> None:
    whole = [e.name for e in entries if e.stores_whole]
    if whole and (len(entries) > 1 or scales[whole[0]] != 1.0):
        problem = f"{whole[0]} stores modules whole: it is neither scaled nor combined"
        raise RequestError("lora", text, problem, "Name it alone.")
    rescaling = [e.name for e in entries if e.rescales]
    if rescaling and len(entries) > 1:
        problem = f"{rescaling[0]} is a DoRA adapter, which scales outputs: it is not combined"
        raise RequestError("lora", text, problem, "Name it alone.")
