"""A draft vocabulary: the part of the target's tokens that a head can draft, and its numbering.

EAGLE-3's `d2t` holds *offsets*: draft id i is the target's i + d2t[i]. `t2d` marks the same tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DraftVocabulary(nn.Module):
    """Buffers `d2t` [draft size] int64 and `t2d` [vocab size] bool; they must agree."""

    d2t: Tensor
    t2d: Tensor

    def __init__(self, d2t: Tensor, t2d: Tensor) -> None:
        super().__init__()
        self.register_buffer("d2t", d2t)
        self.register_buffer("t2d", t2d)

    @classmethod
    def of(cls, target_ids: Tensor, vocab_size: int) -> DraftVocabulary:
        """Return the vocabulary of these target ids [draft size], ascending."""
        ids = target_ids.sort().values
        t2d = torch.zeros(vocab_size, dtype=torch.bool)
        t2d[ids] = True
        return cls(ids - torch.arange(len(ids)), t2d)

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """Map draft ids to the target's."""
        return draft_ids + self.d2t[draft_ids]

    def problems(self) -> list[str]:
        """Return what is wrong with the tables; empty if nothing."""
        size, vocab = len(self.d2t), len(self.t2d)
        ids = self.target_ids(torch.arange(size, device=self.d2t.device))
        marked = self.t2d.nonzero()[:, 0]
        if len(marked) == size and torch.equal(ids.sort().values, marked):
            return []
        if len(marked) == size and torch.equal(self.d2t.sort().values, marked):
            return ["tensor d2t holds target ids; EAGLE-3's holds offsets, target id - draft id"]
        inside = bool(((ids >= 0) & (ids < vocab)).all())
        why = "do not name the tokens that t2d marks" if inside else f"leave the {vocab} tokens"
        return [f"tensor d2t: draft ids {why} ({size} ids, {len(marked)} marked)"]
