"""`HostTier`: which slot of host memory holds the KV of which block, and for whom.

Two uses, one pool of slots. What is evicted from the device stays findable by its content, least
recently used first out; what is swapped out of a preempted sequence is held for it. Written by
`BlockManager` alone, under the scheduler's books; it knows nothing of tensors. The transfers that
it owes are carried out once each, before the next forward pass writes anything.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from workbench.cache.prefix import Content
from workbench.config import require_positive
from workbench.describe import Described
from workbench.events import BlocksMoved, EventBus
from workbench.interrupts import shielded


class Transfers(Protocol):
    """Who moves KV between device blocks and host slots; see `HostMemory`."""

    def offload(self, block_of: Mapping[int, int]) -> None:
        """Copy each block to its slot: {slot: block}."""

    def restore(self, slot_of: Mapping[int, int]) -> None:
        """Copy each slot to its block: {block: slot}."""


@dataclass(frozen=True, slots=True)
class SwappedOut:
    """A preempted sequence's KV: slot i holds its i-th block, `hashes` names the first ones."""

    slots: tuple[int, ...]
    hashes: tuple[bytes, ...]
    num_tokens: int


class HostTier(Described):
    """`num_slots` slots, each *blank*, *idle* (findable, first to be reused) or *held*.

    `swapped` by sequence id. `offloading` {slot: block} and `restoring` {block: slot} are the
    transfers owed. A restored block's slot is held until its content has arrived.
    """

    def __init__(self, num_slots: int) -> None:
        """Raise `ConfigError` unless there is at least one slot."""
        require_positive("num_host_blocks", num_slots)
        self.num_slots = num_slots
        self.num_offloads = self.num_restores = 0  # blocks moved so far
        self.holds = [0] * num_slots
        self.swapped: dict[int, SwappedOut] = {}
        self.offloading: dict[int, int] = {}
        self.restoring: dict[int, int] = {}
        self._blank = list(range(num_slots - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._slot_of: dict[bytes, int] = {}
        self._content_of: dict[int, Content] = {}

    # --- reading ------------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        """Slots that can be claimed now: the blank and the idle ones."""
        return len(self._blank) + len(self._idle)

    @property
    def num_findable(self) -> int:
        """Slots that can be found by their content."""
        return len(self._slot_of)

    def find(self, content_hash: bytes) -> int | None:
        """Return the slot with this content, or None."""
        return self._slot_of.get(content_hash)

    def content(self, slot: int) -> Content | None:
        """Return what a slot can be found by, or None."""
        return self._content_of.get(slot)

    def items(self) -> Iterator[tuple[bytes, int]]:
        """Iterate over (content hash, slot)."""
        return iter(self._slot_of.items())

    # --- taking in ----------------------------------------------------------------------------

    def keep(self, content: Content, block_id: int) -> int | None:
        """Keep the content of a block that is being evicted; return its slot.

        None if no transfer is owed: it is here already, or every slot is held.
        """
        known = self._slot_of.get(content.name)
        if known is not None:
            if known in self._idle:
                self._idle.move_to_end(known)
            return None
        if not self.num_free:
            return None
        slot = self._claim(content)
        self.offloading[slot] = block_id
        self._idle[slot] = None
        return slot

    def swap_out(
        self,
        sequence_id: int,
        block_ids: list[int],
        contents: list[Content],
        num_tokens: int,
    ) -> list[tuple[int, int]] | None:
        """Keep a sequence's blocks for it; return what is transferred as (block, slot).

        contents: of its first blocks, by which others may find them too. None, with nothing
        changed, if there are too few slots.
        """
        padded: list[Content | None] = [*contents, *[None] * (len(block_ids) - len(contents))]
        slots = [self._present(b, c) for b, c in zip(block_ids, padded, strict=True)]
        for slot in slots:
            if slot is not None:
                self.hold(slot)
        if slots.count(None) > self.num_free:
            for slot in slots:
                if slot is not None:
                    self.release(slot)
            return None
        moved: list[tuple[int, int]] = []
        for index, (block_id, content) in enumerate(zip(block_ids, padded, strict=True)):
            if slots[index] is None:
                slot = slots[index] = self._claim(content)
                self.holds[slot] = 1
                self.offloading[slot] = block_id
                moved.append((block_id, slot))
        kept = tuple(slot for slot in slots if slot is not None)
        self.swapped[sequence_id] = SwappedOut(kept, tuple(c.name for c in contents), num_tokens)
        return moved

    def _present(self, block_id: int, content: Content | None) -> int | None:
        """Return the slot that holds a block's content already."""
        if block_id in self.restoring:
            return self.restoring[block_id]
        return None if content is None else self._slot_of.get(content.name)

    def _claim(self, content: Content | None) -> int:
        """Return a slot that nobody holds, its old content forgotten and this one noted."""
        if self._blank:
            slot = self._blank.pop()
        else:
            slot, _ = self._idle.popitem(last=False)
            self._forget(slot)
        if content is not None:
            self._slot_of[content.name], self._content_of[slot] = slot, content
        return slot

    def _forget(self, slot: int) -> None:
        content = self._content_of.pop(slot, None)
        if content is not None:
            del self._slot_of[content.name]
        self.offloading.pop(slot, None)

    # --- giving back --------------------------------------------------------------------------

    def hold(self, slot: int) -> None:
        """Keep a slot from being reused."""
        self._idle.pop(slot, None)
        self.holds[slot] += 1

    def release(self, slot: int) -> None:
        """Undo one `hold`: without any, the slot is idle if it can be found, else blank."""
        self.holds[slot] -= 1
        if self.holds[slot]:
            return
        if slot in self._content_of:
            self._idle[slot] = None
        else:
            self._forget(slot)
            self._blank.append(slot)

    def restore(self, slot: int, block_id: int) -> None:
        """Owe a transfer from a slot that the caller holds; the hold passes to the transfer."""
        self.restoring[block_id] = slot

    def cancel(self, block_id: int) -> bool:
        """Drop the transfer owed to a block that nobody refers to any more; whether there was."""
        slot = self.restoring.pop(block_id, None)
        if slot is not None:
            self.release(slot)
        return slot is not None

    def drop(self, sequence_id: int) -> None:
        """Forget what is kept for a sequence; fine if nothing is."""
        kept = self.swapped.pop(sequence_id, None)
        for slot in kept.slots if kept else ():
            self.release(slot)

    def clear(self) -> None:
        """Forget everything that nobody holds, and the names of what is held."""
        for slot in list(self._idle):
            self._forget(slot)
            self._blank.append(slot)
        self._idle.clear()
        self._slot_of.clear()
        self._content_of.clear()

    # --- transfers ----------------------------------------------------------------------------

    def carry_out(self, memory: Transfers, bus: EventBus | None = None, step: int = 0) -> None:
        """Let `memory` make the transfers owed, those to the host first; tell `bus`.

        Each is made once: a block that was offloaded may be written at any time after. If one
        fails, it and what follows stay owed, and nothing has been written that it needs.
        """
        if self.offloading:
            memory.offload(self.offloading)
            with shielded():
                count = len(self.offloading)
                self.num_offloads += count
                self.offloading.clear()
                if bus:
                    bus.emit(BlocksMoved(step, "offload", count))
        if self.restoring:
            memory.restore(self.restoring)
            with shielded():
                count = len(self.restoring)
                self.num_restores += count
                for slot in self.restoring.values():
                    self.release(slot)
                self.restoring.clear()
                if bus:
                    bus.emit(BlocksMoved(step, "restore", count))

    # --- proof --------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `AssertionError` unless each slot is blank, idle or held, and counted."""
        expected = Counter(slot for kept in self.swapped.values() for slot in kept.slots)
        expected.update(self.restoring.values())
        blank, idle = set(self._blank), set(self._idle)
        names = {content.name: slot for slot, content in self._content_of.items()}
        held = {slot for slot, count in enumerate(self.holds) if count}
        assert len(blank) == len(self._blank), "a slot is blank twice"
        assert not blank & idle, "a slot is blank and idle"
        assert held == set(range(self.num_slots)) - blank - idle, "a slot is lost, or free and held"
        assert {slot: self.holds[slot] for slot in held} == dict(expected), "a hold is wrong"
        assert names == self._slot_of, "names out of step"
        assert not blank & set(self._content_of), "a blank slot can be found"
        assert idle <= set(self._content_of), "an idle slot cannot be found"
        assert not blank & set(self.offloading), "a transfer to a blank slot is owed"

    def describe(self) -> dict[str, Any]:
        """Return how the slots are used now."""
        return {
            "host blocks": self.num_slots,
            "findable": self.num_findable,
            "held": self.num_slots - self.num_free,
            "swapped sequences": len(self.swapped),
        }
