"""`ReplayedState`: allocator and scheduler as events tell of them, without the engine.

Made empty for a `CacheLayout`, changed by `workbench.trace.apply` alone, read by views. Equal to
the live engine's state after every event. Lists are by block or slot number and cheap to copy, so
that snapshots are.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from workbench.describe import Described
from workbench.errors import TraceError
from workbench.trace.layout import CacheLayout


class BlockState(NamedTuple):
    """A block as it stands.

    position: which block of its sequences it is. owners: the sequences whose table holds it, by
    number. references: those, and copies that are still to be made from it. fill: how many of its
    tokens' KV is in it. content_hash: what it can be found by. slot: where the host has the same.
    """

    group: int
    position: int
    owners: tuple[int, ...]
    references: int
    fill: int
    content_hash: str | None
    slot: int | None

    @property
    def kind(self) -> str:
        """`blank`, `cached` (free, its content can be found), `shared` or `used`."""
        if self.references:
            return "shared" if self.references > 1 else "used"
        return "blank" if self.content_hash is None else "cached"


@dataclass(slots=True)
class BlockTableState:
    """A sequence's blocks in one KV group, from its block `first` on (0 while it has none), without
    those at `holes`, which a policy has dropped."""

    first: int = 0
    block_ids: list[int] = field(default_factory=list)
    holes: list[int] = field(default_factory=list)

    def place(self, index: int) -> int:
        """Return where in `block_ids` a block lies that is no hole."""
        return index - self.first - bisect_left(self.holes, index)

    def copy(self) -> BlockTableState:
        """Return one that may be changed."""
        return BlockTableState(self.first, list(self.block_ids), list(self.holes))


@dataclass(slots=True)
class SequenceState:
    """A sequence that has not ended, or ended in the step that is looked at.

    status: `compiling` (its grammar), `waiting`, `running`, `paused` or `finished`. tables: one per
    KV group; `holds_blocks`: whether it may have any. num_cached: prompt tokens that it found when
    it was first started (None: it has not been). parent_id: whom it was forked from, at
    `num_forked` tokens.
    """

    sequence_id: int
    request_id: str
    branch: int
    num_prompt_tokens: int
    num_tokens: int
    status: str
    num_computed: int = 0
    num_cached: int | None = None
    num_preemptions: int = 0
    parent_id: int | None = None
    num_forked: int = 0
    holds_blocks: bool = False
    tables: list[BlockTableState] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return self.num_tokens - self.num_prompt_tokens

    def copy(self) -> SequenceState:
        """Return one that may be changed."""
        return replace(self, tables=[table.copy() for table in self.tables])


class SwappedState(NamedTuple):
    """What the host keeps for a sequence: slot i holds its i-th block."""

    slots: tuple[int, ...]
    num_tokens: int


class ReplayedState(Described):
    """The state of cache and scheduler after `step`; `tokens` of each sequence that ever was.

    sequences: by id, those that have not ended; `running` in order of admission; `finished`: those
    that ended since the step before. references, contents, owners and positions are by block,
    slot_holds and slot_contents by host slot; copies: (source, destination) still to be made;
    offloading {slot: block} and restoring {block: slot}: transfers still to be made.
    """

    def __init__(self, layout: CacheLayout, tokens: dict[int, list[int]] | None = None) -> None:
        """Begin with an empty cache and no requests. tokens: shared with other states."""
        count = layout.num_blocks
        self.layout = layout
        self.step = 0
        self.tokens: dict[int, list[int]] = {} if tokens is None else tokens
        self.sequences: dict[int, SequenceState] = {}
        self.running: dict[int, SequenceState] = {}
        self.finished: dict[int, SequenceState] = {}
        self.references = [0] * count
        self.contents: list[str | None] = [None] * count
        self.owners: list[tuple[int, ...]] = [()] * count
        self.positions = [0] * count
        self.copies: list[tuple[int, int]] = []
        self.slot_holds = [0] * layout.num_slots
        self.slot_contents: list[str | None] = [None] * layout.num_slots
        self.slot_of: dict[str, int] = {}
        self.block_of: dict[str, int] = {}  # by content; kept where there is a host tier
        self.swapped: dict[int, SwappedState] = {}
        self.offloading: dict[int, int] = {}
        self.restoring: dict[int, int] = {}
        self.rows: tuple[tuple[int, int, int], ...] = ()  # of the step under way, or just done
        self.step_is_over = True
        self.touched: set[int] = set()  # blocks that may look different; the reader clears it

    # --- reading ------------------------------------------------------------------------------

    def block(self, block_id: int) -> BlockState:
        """Return a block as it stands; `TraceError` for one that the cache does not have."""
        if block_id not in range(len(self.contents)):
            raise TraceError(f"block {block_id!r} is none of the {len(self.contents)} blocks.")
        content = self.contents[block_id]
        slot = self.restoring.get(block_id)
        if slot is None and content is not None:
            slot = self.slot_of.get(content)
        return BlockState(
            self.layout.group_of(block_id),
            self.positions[block_id],
            self.owners[block_id],
            self.references[block_id],
            self.fill(block_id),
            content,
            slot,
        )

    def fill(self, block_id: int) -> int:
        """Return how many tokens' KV is in a block: all where it can be found, else as many as its
        furthest owner has computed."""
        size = self.layout.block_size
        if self.contents[block_id] is not None:
            return size
        start, furthest = self.positions[block_id] * size, 0
        for sequence_id in self.owners[block_id]:
            sequence = self.sequences.get(sequence_id)
            if sequence is not None and sequence.num_computed > furthest:
                furthest = sequence.num_computed
        return min(size, max(0, furthest - start))

    def token_ids(self, sequence_id: int) -> list[int]:
        """Return a sequence's tokens now, prompt and output."""
        sequence = self.find(sequence_id)
        return self.tokens[sequence_id][: sequence.num_tokens]

    def output_token_ids(self, sequence_id: int) -> list[int]:
        """Return the tokens that a sequence has generated so far."""
        return self.token_ids(sequence_id)[self.find(sequence_id).num_prompt_tokens :]

    def find(self, sequence_id: int) -> SequenceState:
        """Return a sequence that has not ended, or ended in this step; `TraceError` otherwise."""
        found = self.sequences.get(sequence_id, self.finished.get(sequence_id))
        if found is None:
            known = ", ".join(map(str, [*self.sequences, *self.finished])) or "none"
            raise TraceError(
                f"sequence {sequence_id!r} is not there after step {self.step}. There are: {known}."
            )
        return found

    def of_status(self, status: str) -> list[SequenceState]:
        """Return the sequences of one status, as they came; those that run as they were started."""
        if status == "running":
            return list(self.running.values())
        return [s for s in self.sequences.values() if s.status == status]

    @property
    def waiting(self) -> list[SequenceState]:
        """The waiting sequences, as they came; the policy's order is not told."""
        return self.of_status("waiting")

    @property
    def paused(self) -> list[SequenceState]:
        """The paused sequences."""
        return self.of_status("paused")

    @property
    def num_used(self) -> int:
        """Blocks that something refers to."""
        return len(self.references) - self.references.count(0)

    @property
    def num_tokens_held(self) -> int:
        """Tokens whose KV is in blocks in use, each block counted once."""
        return sum(self.fill(block) for block, count in enumerate(self.references) if count)

    def copy(self) -> ReplayedState:
        """Return a state that may be changed; it shares `tokens`, which only grow."""
        other = ReplayedState.__new__(ReplayedState)
        other.__dict__.update(self.__dict__)
        for name in ("references", "contents", "owners", "positions", "copies"):
            setattr(other, name, list(getattr(self, name)))
        other.slot_holds, other.slot_contents = list(self.slot_holds), list(self.slot_contents)
        for name in ("slot_of", "block_of", "swapped", "offloading", "restoring"):
            setattr(other, name, dict(getattr(self, name)))
        other.sequences = {i: sequence.copy() for i, sequence in self.sequences.items()}
        other.running = {i: other.sequences[i] for i in self.running}
        other.finished = {i: sequence.copy() for i, sequence in self.finished.items()}
        other.touched = set(self.touched)
        return other

    def describe(self) -> dict[str, Any]:
        """Return the state in numbers."""
        return {
            "step": self.step,
            "running": len(self.running),
            "waiting": len(self.waiting),
            "paused": len(self.paused),
            "blocks used": f"{self.num_used}/{self.layout.num_blocks}",
            "cached": sum(
                content is not None and not count
                for content, count in zip(self.contents, self.references, strict=True)
            ),
            "tokens held": self.num_tokens_held,
        }
