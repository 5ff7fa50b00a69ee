"""How few rank rows an engine's adapters can do with.

Asked by the manager before rows are given up: what is refused here has changed nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from workbench.config import require_positive
from workbench.errors import ConfigError
from workbench.lora.slots import DeviceSlots
from workbench.lora.store import AdapterStore
from workbench.request import Request

_FIELD = "lora_rows"


def check_rows(
    num_rows: int, store: AdapterStore, slots: DeviceSlots, unfinished: Iterable[Request]
) -> None:
    """Raise `ConfigError`, naming who lacks room, unless so many rank rows are enough.

    For every adapter that is loaded, alone; for those that are pinned and those that run, at once;
    and for each unfinished request beside the pinned ones. Rows must be bounded: else they are made
    as adapters come, and nothing is planned for them.
    """
    require_positive(_FIELD, num_rows)
    if not slots.bounded:
        problem = "this engine makes rank rows as adapters come"
        raise ConfigError(_FIELD, num_rows, problem, "Build it with a number of lora_rows.")
    entries = store.entries
    largest = max(entries.values(), key=lambda entry: entry.rank, default=None)
    if largest is not None and largest.rank > num_rows:
        problem = f"adapter {largest.name!r} alone takes {largest.rank}"
        raise ConfigError(_FIELD, num_rows, problem, "Unload it, or leave more.")
    pinned = {entry.name for entry in entries.values() if entry.pinned}
    staying = sorted(pinned | slots.needed)
    taken = sum(entries[name].rank for name in staying)
    if taken > num_rows:
        problem = f"what is pinned or running takes {taken}: {', '.join(staying)}"
        raise ConfigError(_FIELD, num_rows, problem, "Unpin some, let requests end, or leave more.")
    for request in unfinished:
        names = pinned | {use.name for use in request.lora}
        taken = sum(entries[name].rank for name in names)
        if taken > num_rows:
            problem = f"request {request.request_id!r}, beside what is pinned, takes {taken}"
            raise ConfigError(_FIELD, num_rows, problem, "Let it end, unpin some, or leave more.")
