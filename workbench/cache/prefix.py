"""Finding computed blocks by content: the index behind prefix reuse.

A full block is named by a hash chained over everything before it, so one lookup per block proves a
whole prefix equal. The namespace (cache salt, adapter) seeds the chain. The index knows each
block's parent and tokens, so that a block can also be found by its first tokens, and it remembers
what was evicted, so that a miss can say why. Used by `BlockManager` and `lookup` alone; it never
touches reference counts.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

_EVICTIONS_REMEMBERED = 65_536
_NAMESPACES_ASKED = 512


def root_hash(namespace: str) -> bytes:
    """Return the hash that a namespace's chains begin with."""
    return blake2b(namespace.encode(), digest_size=16, person=b"kv-root").digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the 128-bit name of a full block from its parent's name and its own tokens."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


class Content(NamedTuple):
    """What a findable block holds: its name, the name of the block before it, its own tokens."""

    name: bytes
    parent: bytes
    token_ids: array[int]

    @classmethod
    def of(cls, parent: bytes, token_ids: Sequence[int]) -> Content:
        """Return the content of a full block, with its name."""
        tokens = array("q", token_ids)
        return cls(block_hash(parent, tokens), parent, tokens)


def _tokens_of(content: Content) -> array[int]:
    return content.token_ids


class Beginning(NamedTuple):
    """A block whose first `num_tokens` tokens are the ones looked for."""

    block_id: int
    num_tokens: int


class Why(NamedTuple):
    """Why a lookup ended where it did: `cause` is one of `PrefixHit.cause`, `text` is in words."""

    cause: str
    text: str


class PrefixIndex:
    """Content hash <-> block, a block's children in the order of their tokens, past evictions."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._content_of: dict[int, Content] = {}
        # Sorted: of all children, one beside the place of other tokens begins most like them.
        self._children: dict[bytes, list[Content]] = {}
        self._evicted: OrderedDict[bytes, tuple[int, int | None]] = OrderedDict()
        self._forgot_evictions = False

    def __len__(self) -> int:
        """Number of blocks that can be found."""
        return len(self._block_of)

    def block(self, content_hash: bytes) -> int | None:
        """Return the block with this content, or None."""
        return self._block_of.get(content_hash)

    def require(self, content_hash: bytes) -> int:
        """Return the block with this content, which is known to be there."""
        return self._block_of[content_hash]

    def content(self, block_id: int) -> Content | None:
        """Return what a block can be found by, or None."""
        return self._content_of.get(block_id)

    def items(self) -> Iterator[tuple[bytes, int]]:
        """Iterate over (content hash, block)."""
        return iter(self._block_of.items())

    def add(self, content: Content, block_id: int) -> bool:
        """Make a block findable; False if another block already holds the same content."""
        if content.name in self._block_of:
            return False
        self._block_of[content.name] = block_id
        self._content_of[block_id] = content
        insort(self._children.setdefault(content.parent, []), content, key=_tokens_of)
        self._evicted.pop(content.name, None)
        return True

    def evict(self, block_id: int, step: int, for_sequence_id: int | None) -> Content:
        """Forget a block's content, remembering when and for whom; return it."""
        content = self._content_of[block_id]
        self.forget(block_id)
        self._evicted[content.name] = (step, for_sequence_id)
        if len(self._evicted) > _EVICTIONS_REMEMBERED:
            self._evicted.popitem(last=False)
            self._forgot_evictions = True
        return content

    def forget(self, block_id: int) -> None:
        """Make a block unfindable; fine if it cannot be found."""
        content = self._content_of.pop(block_id, None)
        if content is None:
            return
        del self._block_of[content.name]
        siblings = self._children[content.parent]
        del siblings[bisect_left(siblings, content.token_ids, key=_tokens_of)]
        if not siblings:
            del self._children[content.parent]

    def beginning(self, parent: bytes, token_ids: Sequence[int]) -> Beginning | None:
        """Return the block after `parent` that begins with most of these tokens; None if none does.

        Two blocks are compared, however many there are.
        """
        siblings = self._children.get(parent, [])
        place = bisect_left(siblings, array("q", token_ids), key=_tokens_of)
        beside = siblings[max(0, place - 1) : place + 1]
        lengths = [common_length(content.token_ids, token_ids) for content in beside]
        length, content = max(zip(lengths, beside, strict=True), default=(0, None))
        return Beginning(self._block_of[content.name], length) if content and length else None

    def why_missing(
        self,
        content_hash: bytes,
        index: int,
        token_ids: Sequence[int],
        namespace: str,
        other_namespaces: set[str],
    ) -> Why:
        """Return why block `index` of a prompt, with these tokens, is not there."""
        if content_hash in self._evicted:
            step, sequence_id = self._evicted[content_hash]
            cause = "by hand" if sequence_id is None else f"for sequence {sequence_id}"
            return Why("evicted", f"block {index} was evicted at step {step} {cause}")
        if index == 0:
            for other in islice(sorted(other_namespaces), _NAMESPACES_ASKED):
                if other != namespace and block_hash(root_hash(other), token_ids) in self._block_of:
                    shown = other.replace("\0", " + ")  # what rotations or embeddings add to it
                    return Why("namespace", f"cached only in namespace {shown!r}")
        if self._forgot_evictions:
            text = f"block {index} was never computed, or evicted before what is remembered"
            return Why("unknown", text)
        return Why("new", f"no such block {index} was ever computed" if index else "no such prefix")

    def check(self) -> None:
        """Raise `AssertionError` unless contents, blocks and children say the same."""
        names = {content.name: block for block, content in self._content_of.items()}
        assert names == self._block_of, "contents and blocks are out of step"
        children = {c.name: parent for parent, made in self._children.items() for c in made}
        for name, parent, tokens in self._content_of.values():
            assert name == block_hash(parent, tokens), "a block does not hold what its name says"
            assert children.pop(name, None) == parent, "a block is not its parent's"
        assert not children, "a parent has a child that is gone"
        for made in self._children.values():
            assert made == sorted(made, key=_tokens_of), "children are out of order"
        assert all(self._children.values()), "a parent without children is kept"


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two lists begin with in common."""
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length
