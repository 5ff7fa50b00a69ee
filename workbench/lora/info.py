"""`AdapterInfo`: an adapter as it stands, for those who ask: plain data that changes no more.

Made by the manager's `info` and `list`, shown by panels.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.lora.store import Entry


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter as it stands: `tier` is device, host or disk; seconds: of its latest moves.

    hits: requests that found it on the device when they were first to start, misses: those that
    had to wait for it. One that starts anew after a preemption is not counted again.
    """

    name: str
    tier: str
    pinned: bool
    leaving: bool
    rank: int
    num_bytes: int
    digest: str
    folder: str | None
    rows: tuple[int, ...]
    num_requests: int
    hits: int
    misses: int
    seconds: dict[str, float]


def info_of(entry: Entry) -> AdapterInfo:
    """Return how an adapter stands."""
    return AdapterInfo(
        name=entry.name,
        tier=entry.tier,
        pinned=entry.pinned,
        leaving=entry.leaving,
        rank=entry.rank,
        num_bytes=entry.num_bytes,
        digest=entry.digest,
        folder=None if entry.folder is None else str(entry.folder),
        rows=() if entry.resident is None else entry.resident.rows,
        num_requests=entry.num_requests,
        hits=entry.hits,
        misses=entry.misses,
        seconds=dict(entry.seconds),
    )
