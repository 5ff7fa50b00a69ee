"""`Follower`: a target's sequence as its draft model knows it, in the same blocks.

Made and driven by `DraftModel`, once a step: `begin`, some passes over `sequence`, `computed`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from workbench.cache import BlockTable, CompanionKV
from workbench.draft import Draft
from workbench.request import Sequence
from workbench.speculation.proposer import Candidate


class Follower:
    """`sequence` has the target's tokens, then guesses, and the target's block table.

    length: how many tokens are to be guessed. rows: the distributions that guesses were drawn from.
    """

    def __init__(self, target: Sequence, kv: CompanionKV) -> None:
        self.target, self.kv = target, kv
        self.sequence = replace(
            target, token_ids=[], num_computed=0, prompt_logprobs=None, activations=None
        )
        self.length = 0
        self.rows: list[Tensor] = []
        self._table: BlockTable | None = None
        self._known = 0  # tokens that are computed for good, as long as the table is this one
        self._settled = 0  # tokens that are the target's: those are never taken back
        self._candidate: Candidate | None = None
        self._generator: torch.Generator | None = None

    @property
    def behind(self) -> int:
        """Tokens that are not computed yet."""
        return self.sequence.num_tokens - self.sequence.num_computed

    def begin(self, candidate: Candidate, length: int) -> bool:
        """Take over the target's tokens and what is computed of them, but the last; return whether
        there is room for a draft, of at most `length` tokens."""
        target, own = self.target, self.sequence.token_ids
        table = self.kv.first.tables[target.sequence_id]
        # A guess is written behind what the target has computed, where nobody else looks.
        length = min(length, table.writable_to - target.num_computed)
        if length < 1 or table.holes:
            return False
        own[self._settled :] = candidate.token_ids[self._settled :]
        self._settled = len(own)
        known = self._known if table is self._table else 0
        computed = min(self.kv.num_computed(table, own, known), len(own) - 1)
        self.kv.cut(table, computed)
        self.sequence.num_computed = self._known = computed
        self._table, self.length, self.rows = table, length, []
        self._candidate, self._generator = candidate, None
        return True

    def computed(self, num_tokens: int) -> None:
        """Note that the first `num_tokens` are computed, guesses included."""
        assert self._table is not None, "it was begun"
        self.kv.note(self._table, self.sequence.token_ids, self._known, num_tokens)

    def draft(self, name: str) -> Draft:
        """Return what was guessed."""
        tokens = self.sequence.token_ids[self._settled :]
        return Draft(tuple(tokens), (), torch.stack(self.rows) if self.rows else None, name)

    def generator(self) -> torch.Generator:
        """Return the numbers for this draft's draws."""
        assert self._candidate is not None, "it was begun"
        self._generator = self._generator or self._candidate.generator()
        return self._generator
