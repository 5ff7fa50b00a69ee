"""Guided decoding as the sampler sees it: a bitmask of what each guided row may say next.

A sequence's `guide` fills its row of the mask; what it does not allow becomes -inf. Called by
`Processing`; grammars live in `workbench.guided`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.errors import GuideFailed
from workbench.request import Sequence
from workbench.sample.bitmask import apply_bitmask, num_words, single_bit
from workbench.sample.params import to_device
from workbench.sample.user_code import last_line


class Guides:
    """The guides of a batch's rows that have one. forced: the rows to which the last `apply` left
    one token."""

    def __init__(self) -> None:
        self.forced: frozenset[int] = frozenset()
        self._rows: list[tuple[int, Sequence]] = []

    def arrange(self, sequences: list[Sequence], vocab_size: int, device: torch.device) -> bool:
        """Take in a batch's sequences, in row order; return whether any is guided."""
        self._rows = [(row, s) for row, s in enumerate(sequences) if s.guide is not None]
        self.forced = frozenset()
        if self._rows:
            rows = [row for row, _ in self._rows]
            self._index = to_device(torch.tensor(rows), device)
            # All bits set: a guide that fails leaves its row alone, and ends it.
            self._all = torch.full((len(rows), num_words(vocab_size)), -1, dtype=torch.int32)
        return bool(self._rows)

    def apply(self, logits: Tensor, failed: dict[int, str]) -> None:
        """Mask in place. failed: gets, by row, why a guide could not say what is allowed."""
        bitmask = self._all.clone()
        for (row, sequence), words in zip(self._rows, bitmask, strict=True):
            assert sequence.guide is not None, "a guide stays with its sequence"
            try:
                sequence.guide.fill(words)
            except GuideFailed as error:
                failed[row] = f"guided_decoding: {error.problem}"
            except Exception as error:  # noqa: BLE001 - a guide may be a user's
                failed[row] = f"guided_decoding: raised {last_line(error)}"
        alone = single_bit(bitmask, logits.shape[1])
        self.forced = frozenset(row for (row, _), one in zip(self._rows, alone, strict=True) if one)
        apply_bitmask(logits, to_device(bitmask, logits.device), self._index)
