"""Drafts as tensors: rotary positions, ancestor masks, and which tokens give logits.

Called by `InputBuilder`. A draft's tokens lie in the cache one after the other, at the slots behind
the sequence's last token; in the text a node stands as deep as its path is long.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from workbench.batch import StepPlan, TreeMasks
from workbench.draft import ancestors_of

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]
_WORD = 32


def rotary_positions(plan: StepPlan, positions: Ints, offsets: Ints) -> Ints:
    """Return positions [T] with every draft token at its depth behind the committed one.

    offsets [S]: where each row begins in the batch.
    """
    trees = {row: draft for row, draft in plan.drafts.items() if not draft.is_chain}
    if not trees:
        return positions
    positions = positions.copy()
    for row, draft in trees.items():
        begin = int(offsets[row]) + 1
        positions[begin : begin + len(draft)] = plan.starts[row] + _depths(draft.depths)
    return positions


@lru_cache(maxsize=1024)
def _depths(depths: tuple[int, ...]) -> Ints:
    """Return a draft's depths as an array; not to be written to."""
    return np.array(depths, dtype=np.int64)


def logit_rows(plan: StepPlan, ends: Ints) -> Any:
    """Return the packed positions whose logits are asked for: the last token of every row that
    samples, and all of a row with a draft. ends [S]: where each row ends in the batch."""
    if not plan.drafts:
        return ends[plan.sampled] - 1
    spans = [
        np.arange(ends[row] - 1 - len(plan.drafts.get(row, ())), ends[row]) for row in plan.sampled
    ]
    return np.concatenate(spans)


def tree_masks(plan: StepPlan, device: torch.device) -> TreeMasks | None:
    """Return the masks of all drafted rows; None where these are chains, which need none."""
    if num_words(plan) == 0:
        return None
    rows = list(plan.drafts)
    words = mask_words(plan, num_words(plan))
    ancestors = torch.from_numpy(words).to(device, non_blocking=True)
    return TreeMasks(rows[0], len(rows), ancestors)


def num_words(plan: StepPlan) -> int:
    """Return how many words a token's mask has; 0 where all drafts are chains, which need none."""
    if all(draft.is_chain for draft in plan.drafts.values()):
        return 0
    return -(-max(len(draft) + 1 for draft in plan.drafts.values()) // _WORD)


def mask_words(plan: StepPlan, words: int) -> Any:
    """Return the masks of the drafted rows' tokens, [N, words] int32; see `TreeMasks`."""
    return np.concatenate([_words(draft.parents, words) for draft in plan.drafts.values()])


@lru_cache(maxsize=1024)
def _words(parents: tuple[int, ...], words: int) -> Any:
    """Return the masks of a draft of this shape, [1 + n, words] int32; not to be written to."""
    octets = b"".join(seen.to_bytes(4 * words, "little") for seen in ancestors_of(parents))
    return np.frombuffer(octets, dtype="<i4").reshape(1 + len(parents), words)
