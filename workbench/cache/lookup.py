"""`find_prefix`: how much of a token list is in the cache, in one KV group or in several at once.

A prefix counts only as far as every group still has what the next token looks at: a group without
a window all of it, one with a window the last blocks. Beyond whole blocks, a block that begins with
the tokens that follow is found too, to be copied. Called by the block managers; changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from workbench.cache.prefix import Beginning, PrefixIndex, block_hash, root_hash

# A KV group as a lookup sees it: its index, and its window in tokens (None: all that came before).
Group = tuple[PrefixIndex, int | None]


@dataclass(frozen=True, slots=True)
class PrefixLookup:
    """What a prefix lookup found: blocks whose KV is that of the first `num_tokens` tokens.

    block_ids: blocks `first`, `first` + 1, … of the token list (`first` is above 0 where a window
    looks no further back). num_copied: tokens that the last of them has in common with the list:
    it is another's block, to be copied (0: all are whole). `hashes` names every whole block from
    the first token on, `reason` says what ended the match, in words. others: the same for a model's
    further KV groups.
    """

    block_ids: tuple[int, ...]
    hashes: tuple[bytes, ...]
    num_tokens: int
    reason: str
    first: int = 0
    num_copied: int = 0
    others: tuple[PrefixLookup, ...] = ()


def first_block(num_computed: int, window: int | None, block_size: int) -> int:
    """Return the first block that tokens from position `num_computed` on look at."""
    return 0 if window is None else max(0, num_computed - window + 1) // block_size


def find_prefix(
    groups: Sequence[Group],
    token_ids: Sequence[int],
    block_size: int,
    namespace: str,
    namespaces: set[str],
    *,
    partial: bool,
) -> PrefixLookup:
    """Return the longest cached prefix, leaving at least one token to compute.

    namespaces: all that were ever used, to explain a miss. partial: whether to go on within a
    block. The last token is always computed: from its logits the next one is drawn.
    """
    num_usable = len(token_ids) - 1
    chain = [root_hash(namespace)]
    num_blocks, gap = _whole_blocks(groups, token_ids, num_usable // block_size, block_size, chain)
    if gap is not None:
        prefix, index = gap
        tokens = token_ids[index * block_size : (index + 1) * block_size]
        reason = prefix.why_missing(chain[index + 1], index, tokens, namespace, namespaces)
    else:
        reason = "whole prompt cached" if num_blocks else "prompt shorter than a block"
    num_tokens = num_blocks * block_size
    rest = token_ids[num_tokens : min(num_tokens + block_size, num_usable)]
    copied = _beginnings(groups, chain[num_blocks], rest) if partial and rest else []
    num_copied = min((match.num_tokens for match in copied), default=0)
    if num_copied:
        reason += f"; partial: {num_copied} of {block_size} tokens of block {num_blocks} copied"
    names = tuple(chain[1 : num_blocks + 1])
    parts = []
    for place, (prefix, window) in enumerate(groups):
        first = first_block(num_tokens + num_copied, window, block_size)
        block_ids = [prefix.require(name) for name in names[first:]]
        block_ids += [copied[place].block_id] if num_copied else []
        total = num_tokens + num_copied
        parts.append(PrefixLookup(tuple(block_ids), names, total, reason, first, num_copied))
    return replace(parts[0], others=tuple(parts[1:]))


def _whole_blocks(
    groups: Sequence[Group],
    token_ids: Sequence[int],
    num_full: int,
    block_size: int,
    chain: list[bytes],
) -> tuple[int, tuple[PrefixIndex, int] | None]:
    """Return how many of `num_full` blocks can be taken over, and what ends it: (index, block).

    `chain`, which holds the root, is extended by the blocks' names as far as they were needed.
    """
    runs = [0] * len(groups)  # blocks that are there without a gap, up to the one looked at
    best, ended_by = 0, None
    for index in range(num_full):
        chain.append(
            block_hash(chain[-1], token_ids[index * block_size : (index + 1) * block_size])
        )
        gap, ended = None, False
        for place, (prefix, window) in enumerate(groups):
            there = prefix.block(chain[-1]) is not None
            runs[place] = runs[place] + 1 if there else 0
            missing = index - runs[place]  # the last block that is not there
            if missing >= first_block((index + 1) * block_size, window, block_size):
                gap = gap or (prefix, missing)
            ended = ended or (window is None and not there)
        if gap is None:
            best, ended_by = index + 1, None
        elif best == index:
            ended_by = gap
        if ended:
            break
    return best, ended_by


def _beginnings(groups: Sequence[Group], parent: bytes, rest: Sequence[int]) -> list[Beginning]:
    """Return each group's best block that begins with `rest`; empty if a group has none."""
    matches = [prefix.beginning(parent, rest) for prefix, _ in groups]
    found = [match for match in matches if match is not None]
    return found if len(found) == len(groups) else []
