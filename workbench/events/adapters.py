"""What happens to LoRA adapters: they come, move between device, host memory and disk, and go.

Stated by the manager (`workbench.lora`); panels and traces are made of these facts.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.events.event import Event


@dataclass(slots=True)
class AdapterLoaded(Event):
    """An adapter can be named by requests from now on; it is in host memory.

    rank: how many rank rows it takes on the device. seconds: what reading and checking took.
    """

    name: str
    digest: str
    rank: int
    num_bytes: int
    seconds: float


@dataclass(slots=True)
class AdapterMoved(Event):
    """An adapter is in another tier now: `device`, `host` or `disk`.

    cause: `wanted` (a request goes through it), `room` (another took its place), `asked` (by hand).
    rows: its rank rows on the device.
    """

    name: str
    source: str
    target: str
    cause: str
    rows: tuple[int, ...]
    seconds: float


@dataclass(slots=True)
class AdapterPinned(Event):
    """An adapter stays on the device and in host memory from now on, or no longer has to."""

    name: str
    pinned: bool


@dataclass(slots=True)
class AdapterAwaited(Event):
    """A sequence cannot start, as there is no room on the device for an adapter, or it is read."""

    sequence_id: int
    name: str
    cause: str


@dataclass(slots=True)
class MemoryRebalanced(Event):
    """Device memory went from LoRA adapters to the KV cache, or back: what each has now."""

    num_rows: int
    num_blocks: int


@dataclass(slots=True)
class AdapterUnloaded(Event):
    """An adapter is no longer known."""

    name: str
