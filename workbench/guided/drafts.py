"""Masks for a chain or tree of draft tokens, so that a verifier samples under the grammar.

Speculation calls `draft_masks` once for each guided sequence before it verifies a draft; the guide
is back in its own state afterwards. Accepting what was verified stays with the scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from workbench.guided.guide import Guide
from workbench.sample.bitmask import allocate_bitmask


class DraftMasks(NamedTuple):
    """bitmask [N + 1, words]: row 0 for the place before the draft, row i + 1 for the place after
    draft token i, nothing allowed where the grammar forbids the way there. allowed[i]: whether
    draft token i may stand where it does, and all tokens before it."""

    bitmask: Tensor
    allowed: list[bool]


def draft_masks(
    guide: Guide, token_ids: Sequence[int], parents: Sequence[int] | None = None
) -> DraftMasks:
    """Return what may follow at every place of a draft of N tokens.

    parents[i]: the index of the draft token before token i, -1 for the sequence itself, and below
    i; None: a chain. Changes nothing. Raises `GuideFailed` as `Guide.fill` does.
    """
    parents = range(-1, len(token_ids) - 1) if parents is None else parents
    assert len(parents) == len(token_ids), "one parent for each draft token"
    assert all(-1 <= p < i for i, p in enumerate(parents)), "a parent comes before its child"
    children: list[list[int]] = [[] for _ in range(len(token_ids) + 1)]
    for i, parent in enumerate(parents):
        children[parent + 1].append(i)
    bitmask = allocate_bitmask(len(token_ids) + 1, guide.vocab_size)
    allowed = [False] * len(token_ids)
    depth = guide.num_tokens
    guide.fill(bitmask[0])
    # Depth first: (token, how many tokens the guide holds before it). A chain of any length.
    stack = [(i, depth) for i in reversed(children[0])]
    try:
        while stack:
            i, place = stack.pop()
            guide.rollback(guide.num_tokens - place)
            allowed[i] = guide.try_accept(token_ids[i])
            if allowed[i]:
                guide.fill(bitmask[i + 1])
                stack += [(child, place + 1) for child in reversed(children[i + 1])]
    finally:
        guide.rollback(guide.num_tokens - depth)
    return DraftMasks(bitmask, allowed)
