"""`EvictionQueue`: which cached block loses its content next.

Lowest priority first, and of equal ones the least recently used; but only a *leaf*, a block of
which no cached block is the continuation, so that of a prefix the end goes before what it rests on.
Used by `BlockManager` alone, which adds a block when its last user leaves and removes it when it is
used again. Every operation is O(log n) or better.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NamedTuple

from workbench.cache.prefix import Content
from workbench.retention import DEFAULT_PRIORITY


class Keep(NamedTuple):
    """A block's priority, and for how many seconds after its last use (None: for good)."""

    priority: int = DEFAULT_PRIORITY
    seconds: float | None = None


DEFAULT_KEEP = Keep()


@dataclass(slots=True)
class CachedBlock:
    """A block that nobody uses and that can be found. `priority` as it is now, its time being up or
    not; `turn` counts additions: the larger, the more recently used."""

    block_id: int
    parent: bytes
    priority: int
    turn: int


class EvictionQueue:
    """Cached blocks by the name of their content; `clock` is read for blocks with a time alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._entries: dict[bytes, CachedBlock] = {}
        self._children: Counter[bytes] = Counter()  # name -> cached blocks that continue it
        self._turns = count()
        # Heaps are never searched: an entry that is no longer true is skipped when it comes up.
        self._order: list[tuple[int, int, bytes]] = []  # (priority, turn, name)
        self._expiries: list[tuple[float, int, bytes]] = []  # (time, turn, name)

    def __len__(self) -> int:
        """Number of cached blocks."""
        return len(self._entries)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the cached blocks, in the order in which they came."""
        return (entry.block_id for entry in self._entries.values())

    def add(self, block_id: int, content: Content, keep: Keep = DEFAULT_KEEP) -> None:
        """Take in a block that nobody uses any more."""
        turn = next(self._turns)
        self._entries[content.name] = CachedBlock(block_id, content.parent, keep.priority, turn)
        self._children[content.parent] += 1
        if not self._children.get(content.name):
            self._push(content.name)
        if keep.seconds is not None:
            heappush(self._expiries, (self.clock() + keep.seconds, turn, content.name))

    def remove(self, name: bytes) -> CachedBlock:
        """Take a block out, which is used again or has no content any more; return it."""
        entry = self._entries.pop(name)
        siblings = self._children[entry.parent] - 1
        if siblings:
            self._children[entry.parent] = siblings
        else:
            del self._children[entry.parent]
            if entry.parent in self._entries:  # now it is a leaf
                self._push(entry.parent)
        return entry

    def pop(self) -> CachedBlock:
        """Take out the block that goes next and return it; there must be one."""
        self._expire()
        while True:
            priority, turn, name = heappop(self._order)
            if self._is_next(priority, turn, name):
                return self.remove(name)

    def leaves(self) -> list[tuple[bytes, CachedBlock]]:
        """Return what may go now, by the name of its content, what `pop` would take first in front.

        Searches all cached blocks.
        """
        self._expire()
        found = [item for item in self._entries.items() if item[0] not in self._children]
        return sorted(found, key=lambda item: (item[1].priority, item[1].turn))

    def with_what_continues(self, block_ids: range) -> list[bytes]:
        """Return the names of these blocks' contents, and of all that rests on them."""
        children: dict[bytes, list[bytes]] = {}
        for name, entry in self._entries.items():
            children.setdefault(entry.parent, []).append(name)
        ahead = [name for name, entry in self._entries.items() if entry.block_id in block_ids]
        found: dict[bytes, None] = {}
        while ahead:
            name = ahead.pop()
            if name not in found:
                found[name] = None
                ahead += children.get(name, ())
        return list(found)

    def _is_next(self, priority: int, turn: int, name: bytes) -> bool:
        """Whether a heap's entry is still true, and of a leaf."""
        entry = self._entries.get(name)
        true = entry is not None and (entry.priority, entry.turn) == (priority, turn)
        return true and name not in self._children

    def _expire(self) -> None:
        """Give blocks whose time is up the default priority."""
        now = self.clock() if self._expiries else 0.0
        while self._expiries and self._expiries[0][0] <= now:
            _, turn, name = heappop(self._expiries)
            entry = self._entries.get(name)
            if entry is not None and entry.turn == turn:
                entry.priority = DEFAULT_PRIORITY
                if name not in self._children:
                    self._push(name)

    def _push(self, name: bytes) -> None:
        entry = self._entries[name]
        heappush(self._order, (entry.priority, entry.turn, name))
        if max(len(self._order), len(self._expiries)) > 2 * len(self._entries) + 64:
            self._compact()

    def _compact(self) -> None:
        """Drop what is no longer true from the heaps: now and then, so that they stay small."""
        self._order = list({item for item in self._order if self._is_next(*item)})
        turns = {entry.turn for entry in self._entries.values()}
        self._expiries = [item for item in self._expiries if item[1] in turns]
        heapify(self._order)
        heapify(self._expiries)

    def check(self) -> None:
        """Raise `AssertionError` unless every leaf is in line, and nothing is counted wrong."""
        children = Counter(entry.parent for entry in self._entries.values())
        assert dict(self._children) == dict(children), "children are counted wrong"
        in_line = {item[2] for item in self._order if self._is_next(*item)}
        leaves = {name for name in self._entries if name not in children}
        assert in_line == leaves, "a leaf cannot be evicted"
        assert not self._entries or leaves, "cached blocks continue each other in a ring"
