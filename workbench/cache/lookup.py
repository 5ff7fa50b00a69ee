"""`find_prefix`: how much of a token list is in the cache, in one KV group or in several at once.

A prefix counts only as far as every group still has what the next token looks at: a group without
a window all of it, one with a window the last blocks. Beyond whole blocks, a block that begins with
the tokens that follow is found too, to be copied; where a host tier holds the whole block, that.
Called by the block managers; changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from workbench.cache.host import HostTier
from workbench.cache.prefix import Beginning, PrefixIndex, Why, block_hash, root_hash

# A KV group as a lookup sees it: its index, and its window in tokens (None: all that came before).
Group = tuple[PrefixIndex, int | None]


@dataclass(frozen=True, slots=True)
class PrefixLookup:
    """What a prefix lookup found: blocks whose KV is that of the first `num_tokens` tokens.

    block_ids: blocks `first`, `first` + 1, … of the token list (`first` is above 0 where a window
    looks no further back). num_copied: tokens that the last of them has in common with the list:
    it is another's block, to be copied (0: all are whole). `slots`: where the host tier holds the
    blocks that follow. `hashes` names every whole block from the first token on. `reason` says what
    ended the match, in words, and `cause` in one (see `PrefixHit`); empty where nobody asked.
    others: the same for a model's further KV groups.
    """

    block_ids: tuple[int, ...]
    hashes: tuple[bytes, ...]
    num_tokens: int
    reason: str
    first: int = 0
    num_copied: int = 0
    slots: tuple[int, ...] = ()
    others: tuple[PrefixLookup, ...] = ()
    cause: str = ""


def first_block(num_computed: int, window: int | None, block_size: int) -> int:
    """Return the first block that tokens from position `num_computed` on look at."""
    return 0 if window is None else max(0, num_computed - window + 1) // block_size


def find_prefix(
    groups: Sequence[Group],
    token_ids: Sequence[int],
    block_size: int,
    namespace: str,
    namespaces: set[str],
    names: Sequence[bytes] = (),
    *,
    partial: bool,
    host: HostTier | None = None,
    explain: bool = True,
) -> PrefixLookup:
    """Return the longest cached prefix, leaving at least one token to compute.

    namespaces: all that were ever used, to explain a miss. names: content hashes of the first
    blocks, where they are known. partial: whether to go on within a block. host: where to go on
    with whole blocks. explain: whether to say why it ends. The last token is always computed: from
    its logits the next one is drawn.
    """
    num_usable = len(token_ids) - 1
    chain = _Chain(token_ids, block_size, namespace, names)
    num_blocks, gap = _whole_blocks(groups, num_usable // block_size, chain)
    slots = _on_host(host, num_blocks, num_usable // block_size, chain) if host is not None else ()
    num_whole = num_blocks + len(slots)
    num_tokens = num_whole * block_size
    rest = token_ids[num_tokens : min(num_tokens + block_size, num_usable)]
    copied = []
    if (partial or explain) and rest and not slots:
        copied = _beginnings(groups, chain.name(num_whole - 1), rest)
    num_alike = min((match.num_tokens for match in copied), default=0)
    num_copied = num_alike if partial else 0
    cause, reason = "", ""
    if explain:
        gap = (groups[0][0], num_whole) if slots else gap
        cause, reason = _why(num_whole, num_usable // block_size, gap, chain, namespaces, host)
        if num_alike:
            done = "copied" if partial else "begin alike, not copied"
            reason += f"; partial: {num_alike} of {block_size} tokens of block {num_whole} {done}"
    hashes, total = chain.first(num_whole), num_tokens + num_copied
    parts = []
    for place, (prefix, window) in enumerate(groups):
        first = first_block(total, window, block_size)
        block_ids = [prefix.require(name) for name in hashes[first:num_blocks]]
        block_ids += [copied[place].block_id] if num_copied else []
        found = PrefixLookup(tuple(block_ids), hashes, total, reason, first, num_copied, slots)
        parts.append(found)
    return replace(parts[0], others=tuple(parts[1:]), cause=cause)


def _why(
    num_whole: int,
    num_full: int,
    gap: tuple[PrefixIndex, int] | None,
    chain: _Chain,
    namespaces: set[str],
    host: HostTier | None,
) -> Why:
    """Return why no more than `num_whole` of a prompt's `num_full` blocks were found."""
    if num_whole == num_full:
        if num_whole:
            return Why("whole", "whole prompt cached")
        return Why("short", "prompt shorter than a block")
    assert gap is not None, "a match that ends before the prompt is ended by something"
    prefix, index = gap
    tokens = chain.tokens(index)
    why = prefix.why_missing(chain.name(index), index, tokens, chain.namespace, namespaces)
    if why.cause == "evicted" and host is not None:
        return Why(why.cause, why.text + ", and is not on the host")
    return why


class _Chain:
    """The names of a token list's full blocks, each made once, when it is asked for."""

    def __init__(
        self, token_ids: Sequence[int], block_size: int, namespace: str, known: Sequence[bytes]
    ) -> None:
        self.token_ids, self.block_size, self._known = token_ids, block_size, known
        self.namespace = namespace
        self._names = [root_hash(namespace)]

    def tokens(self, index: int) -> Sequence[int]:
        """Return a block's tokens."""
        return self.token_ids[index * self.block_size : (index + 1) * self.block_size]

    def name(self, index: int) -> bytes:
        """Return a block's name; that of block -1 is the namespace's."""
        names, known = self._names, self._known
        while len(names) < index + 2:
            at = len(names) - 1
            names.append(known[at] if at < len(known) else block_hash(names[-1], self.tokens(at)))
        return names[index + 1]

    def first(self, count: int) -> tuple[bytes, ...]:
        """Return the names of the first blocks."""
        self.name(count - 1)
        return tuple(self._names[1 : count + 1])


def _whole_blocks(
    groups: Sequence[Group], num_full: int, chain: _Chain
) -> tuple[int, tuple[PrefixIndex, int] | None]:
    """Return how many of `num_full` blocks can be taken over, and what ends it: (index, block)."""
    runs = [0] * len(groups)  # blocks that are there without a gap, up to the one looked at
    best, ended_by = 0, None
    for index in range(num_full):
        name, gap, ended = chain.name(index), None, False
        for place, (prefix, window) in enumerate(groups):
            there = prefix.block(name) is not None
            runs[place] = runs[place] + 1 if there else 0
            missing = index - runs[place]  # the last block that is not there
            if missing >= first_block((index + 1) * chain.block_size, window, chain.block_size):
                gap = gap or (prefix, missing)
            ended = ended or (window is None and not there)
        if gap is None:
            best, ended_by = index + 1, None
        elif best == index:
            ended_by = gap
        if ended:
            break
    return best, ended_by


def _on_host(host: HostTier, start: int, num_full: int, chain: _Chain) -> tuple[int, ...]:
    """Return the slots of the blocks from `start` on, as far as the host tier holds them."""
    slots: list[int] = []
    for index in range(start, num_full if host.num_findable else 0):
        slot = host.find(chain.name(index))
        if slot is None:
            break
        slots.append(slot)
    return tuple(slots)


def _beginnings(groups: Sequence[Group], parent: bytes, rest: Sequence[int]) -> list[Beginning]:
    """Return each group's best block that begins with `rest`; empty if a group has none."""
    matches = [prefix.beginning(parent, rest) for prefix, _ in groups]
    found = [match for match in matches if match is not None]
    return found if len(found) == len(groups) else []
