"""What happens to blocks and host slots, and what prefix lookups find.

Stated by the block managers and their pools; lookups by the scheduler's queues. Every change of a
reference count, of a block table and of what can be found is told.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.events.event import Event


@dataclass(slots=True)
class BlockAllocated(Event):
    """A free block now belongs to a sequence, at `index` of its block table."""

    block_id: int
    sequence_id: int
    index: int


@dataclass(slots=True)
class BlockShared(Event):
    """A sequence took a further reference on a block (prefix hit or fork)."""

    block_id: int
    sequence_id: int
    index: int


@dataclass(slots=True)
class BlockCopied(Event):
    """Copy-on-write: a sequence replaced a shared block of its table by a copy."""

    source: int
    block_id: int
    sequence_id: int
    index: int


@dataclass(slots=True)
class BlockReleased(Event):
    """A sequence gave its reference up; `num_references` are left.

    sequence_id: None for the source of a copy that has been made, or is not wanted any more.
    """

    block_id: int
    sequence_id: int | None
    num_references: int


@dataclass(slots=True)
class BlocksDropped(Event):
    """A sequence is without the blocks at these indices of its table from now on: a policy dropped
    them, or it was forked from one that is without them."""

    sequence_id: int
    indices: tuple[int, ...]


@dataclass(slots=True)
class BlockFreed(Event):
    """Nobody refers to the block any more; `cached`: its content can still be found."""

    block_id: int
    cached: bool


@dataclass(slots=True)
class BlockCached(Event):
    """A full, computed block can be found by its content from now on."""

    block_id: int
    content_hash: str


@dataclass(slots=True)
class BlockEvicted(Event):
    """A cached, unreferenced block lost its content to make room for a sequence (None: by hand)."""

    block_id: int
    content_hash: str
    for_sequence_id: int | None


@dataclass(slots=True)
class BlockOffloaded(Event):
    """A block's content goes to a host slot: evicted (None), or swapped out of a sequence.

    content_hash: what the slot can be found by; None where it is kept for the sequence alone.
    """

    block_id: int
    slot: int
    sequence_id: int | None
    content_hash: str | None


@dataclass(slots=True)
class BlockRestored(Event):
    """A host slot's content comes back into a block of a sequence."""

    slot: int
    block_id: int
    sequence_id: int


@dataclass(slots=True)
class BlocksMoved(Event):
    """All copies that were owed in one direction (`offload` or `restore`) have been made."""

    direction: str
    num_blocks: int


@dataclass(slots=True)
class HostCleared(Event):
    """The host tier forgot all content, but what it keeps for swapped-out sequences."""


@dataclass(slots=True)
class PrefixHit(Event):
    """A prefix lookup found `num_tokens` tokens; `reason` says what ended the match.

    cause: `whole` (all that may be), `short` (no whole block to look for), `new` (the next block
    was never computed), `evicted`, `namespace` (another adapter or salt has it), `unknown` (it may
    have been evicted very long ago), `asked` (the request wants to know of each token), `dropping`
    (what follows the prompt depends on what was dropped), `off`.
    """

    sequence_id: int
    num_tokens: int
    num_prompt_tokens: int
    reason: str
    cause: str


@dataclass(slots=True)
class PrefixMiss(Event):
    """A prefix lookup found nothing, and why: see `PrefixHit`."""

    sequence_id: int
    num_prompt_tokens: int
    reason: str
    cause: str
