"""Finding computed blocks by content: the index behind prefix reuse.

A full block is named by a hash chained over everything before it, so one lookup per block proves a
whole prefix equal. The namespace (cache salt, adapter) seeds the chain. The index also remembers
what was evicted, so that a miss can say why. Used by `BlockManager` alone; it never touches
reference counts.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

_EVICTIONS_REMEMBERED = 65_536


def root_hash(namespace: str) -> bytes:
    """Return the hash that a namespace's chains begin with."""
    return blake2b(namespace.encode(), digest_size=16, person=b"kv-root").digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the 128-bit name of a full block from its parent's name and its own tokens."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class PrefixLookup:
    """What a prefix lookup found: blocks whose KV is that of the first `num_tokens` tokens.

    `reason` says what ended the match, in words; `hashes` names the matched blocks. `slots`: where
    the host tier holds the blocks that follow `block_ids`.
    """

    block_ids: tuple[int, ...]
    hashes: tuple[bytes, ...]
    num_tokens: int
    reason: str
    slots: tuple[int, ...] = ()


class PrefixIndex:
    """Content hash <-> block, and the memory of evictions."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._evicted: OrderedDict[bytes, tuple[int, int | None]] = OrderedDict()

    def __len__(self) -> int:
        """Number of blocks that can be found."""
        return len(self._block_of)

    def block(self, content_hash: bytes) -> int | None:
        """Return the block with this content, or None."""
        return self._block_of.get(content_hash)

    def content(self, block_id: int) -> bytes | None:
        """Return the content hash under which a block can be found, or None."""
        return self._hash_of.get(block_id)

    def items(self) -> Iterator[tuple[bytes, int]]:
        """Iterate over (content hash, block)."""
        return iter(self._block_of.items())

    def add(self, content_hash: bytes, block_id: int) -> bool:
        """Make a block findable; False if another block already holds the same content."""
        if content_hash in self._block_of:
            return False
        self._block_of[content_hash] = block_id
        self._hash_of[block_id] = content_hash
        self._evicted.pop(content_hash, None)
        return True

    def evict(self, block_id: int, step: int, for_sequence_id: int | None) -> bytes:
        """Forget a block's content, remembering when and for whom; return its hash."""
        content_hash = self._hash_of.pop(block_id)
        del self._block_of[content_hash]
        self._evicted[content_hash] = (step, for_sequence_id)
        if len(self._evicted) > _EVICTIONS_REMEMBERED:
            self._evicted.popitem(last=False)
        return content_hash

    def forget(self, block_id: int) -> None:
        """Make a block unfindable whose content never came; fine if it cannot be found."""
        content_hash = self._hash_of.pop(block_id, None)
        if content_hash is not None:
            del self._block_of[content_hash]

    def lookup(
        self,
        token_ids: Sequence[int],
        block_size: int,
        namespace: str,
        other_namespaces: set[str],
        names: Sequence[bytes] = (),
    ) -> PrefixLookup:
        """Return the longest run of cached full blocks, leaving at least one token to compute.

        The last token is always computed, because its logits are what the next one is drawn from.
        names: content hashes of the first blocks, where they are known.
        """
        parent = root_hash(namespace)
        block_ids: list[int] = []
        hashes: list[bytes] = []
        num_full = (len(token_ids) - 1) // block_size
        reason = "whole prompt cached" if num_full else "prompt shorter than a block"
        for index in range(num_full):
            tokens = token_ids[index * block_size : (index + 1) * block_size]
            content_hash = names[index] if index < len(names) else block_hash(parent, tokens)
            block_id = self._block_of.get(content_hash)
            if block_id is None:
                reason = self._why_missing(content_hash, tokens, index, namespace, other_namespaces)
                break
            block_ids.append(block_id)
            hashes.append(content_hash)
            parent = content_hash
        return PrefixLookup(tuple(block_ids), tuple(hashes), len(block_ids) * block_size, reason)

    def _why_missing(
        self,
        content_hash: bytes,
        tokens: Sequence[int],
        index: int,
        namespace: str,
        other_namespaces: set[str],
    ) -> str:
        if content_hash in self._evicted:
            step, sequence_id = self._evicted[content_hash]
            cause = "by hand" if sequence_id is None else f"for sequence {sequence_id}"
            return f"block {index} was evicted at step {step} {cause}"
        if index == 0:
            for other in islice(sorted(other_namespaces), 64):
                if other != namespace and block_hash(root_hash(other), tokens) in self._block_of:
                    return f"cached only in namespace {other!r}"
        return f"no such block {index} was ever computed" if index else "no such prefix"
