"""`PrefixWaits`: waiting sequences whose next block one that runs is computing right now.

Prompts that begin alike and arrive together would each compute what they have in common. Here the
first one does, and the others wait until it lies in the cache; never longer, because a sequence is
only awaited for what it computes next, and only while it runs. Held by the queues, asked by the
planner.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import NamedTuple

from workbench.cache import Blocks, PrefixLookup
from workbench.cache.prefix import block_hash, root_hash
from workbench.request import Sequence, Status


class Awaited(NamedTuple):
    """Who computes a prefix, and how many tokens of it (whole blocks) both begin with."""

    leader: Sequence
    num_tokens: int


class PrefixWaits:
    """Who waits for whom, by sequence id; and who may be awaited in this step.

    Of one that waits the cache is not asked again until the wait is over, so that thousands may.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self._awaited: dict[int, Awaited] = {}
        self._leaders: dict[bytes, Sequence] = {}  # by the name of the block it computes next

    def lead(self, sequence: Sequence) -> None:
        """Let one that runs be awaited for its next blocks; behind a hole it publishes none."""
        table = self.blocks.tables[sequence.sequence_id]
        name = None if table.holes else self._next_name(sequence, table.hashes)
        if name is not None:
            self._leaders.setdefault(name, sequence)

    def forget_leaders(self) -> None:
        """Begin a step: who ran before has moved on."""
        self._leaders.clear()

    def holds(self, sequence: Sequence) -> bool:
        """Whether a sequence still waits for a prefix, as found before."""
        awaited = self._awaited.get(sequence.sequence_id)
        if awaited is None:
            return False
        leader, num_tokens = awaited
        if leader.status is Status.RUNNING and leader.num_computed < num_tokens:
            return True
        del self._awaited[sequence.sequence_id]
        return False

    def find(self, sequence: Sequence, found: PrefixLookup) -> Awaited | None:
        """Return whom a sequence should wait for, and note it; None if that saves it no block.

        found: what the cache holds of it already.
        """
        size = self.blocks.block_size
        usable = min(sequence.num_reusable, sequence.num_tokens - 1)
        if not self._leaders or usable - found.num_tokens < size:
            return None
        name = self._next_name(sequence, found.hashes)
        leader = self._leaders.get(name) if name is not None else None
        if leader is None:
            return None
        common = common_blocks(sequence.token_ids, leader.token_ids, size, len(found.hashes))
        num_tokens = min(common, usable // size) * size
        if num_tokens - found.num_tokens < size:
            return None
        awaited = self._awaited[sequence.sequence_id] = Awaited(leader, num_tokens)
        return awaited

    def drop(self, sequence_id: int) -> None:
        """Forget one that waits no more, for whatever reason."""
        self._awaited.pop(sequence_id, None)

    def _next_name(self, sequence: Sequence, hashes: Tokens[bytes]) -> bytes | None:
        """Return the name of the block after those named; None if its tokens are not all known."""
        size, start = self.blocks.block_size, len(hashes) * self.blocks.block_size
        tokens = sequence.token_ids[start : start + size]
        if len(tokens) < size:
            return None
        return block_hash(hashes[-1] if hashes else root_hash(sequence.request.namespace), tokens)


def common_blocks(one: list[int], other: list[int], block_size: int, start: int) -> int:
    """Return how many full blocks two token lists begin with in common; of `start` it is known."""
    index = start
    stop = min(len(one), len(other)) // block_size
    while index < stop:
        here = slice(index * block_size, (index + 1) * block_size)
        if one[here] != other[here]:
            break
        index += 1
    return index
