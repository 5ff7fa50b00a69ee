"""`DFlashProposer`: a block of tokens at once, behind the states of all accepted tokens.

What a block drafts is a chain. The states go into the head's cache as keys and values alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from workbench.describe import Described
from workbench.draft import Draft
from workbench.ops import get_backend
from workbench.speculation.eagle import check_target
from workbench.speculation.head_rows import HeadRows, drafts_of, packed_states
from workbench.speculation.heads import DFlashHead, DraftTree, HeadCache
from workbench.speculation.proposer import ProposalContext

if TYPE_CHECKING:
    from workbench.cache import KVCache
    from workbench.models import DecoderLM


class DFlashProposer(Described):
    """Proposes the block that a DFlash head drafts."""

    def __init__(self, head: DFlashHead, *, backend: str = "auto") -> None:
        self.head, self.name, self.needs = head, head.kind, head.needs
        self.backend = get_backend(backend, next(head.parameters()).device)
        self.close()

    def bind(self, model: DecoderLM, cache: KVCache) -> None:
        """Start afresh. Raise `ConfigError` unless the model is the head's own target."""
        check_target(self.name, self.head.target.model, model)
        self.close()

    def close(self) -> None:
        """Forget every sequence."""
        device = next(self.head.parameters()).device
        cache = HeadCache(self.head.config, 1, dtype=self.head.dtype, device=device)
        self.rows = HeadRows(self.needs, cache)

    @torch.inference_mode()
    def propose(self, context: ProposalContext) -> list[Draft | None]:
        """Return a draft for each candidate whose states are all there."""
        answers: list[Draft | None] = [None] * len(context.candidates)
        news, cache = self.rows.update(context.candidates), self.rows.cache
        assert cache is not None
        fresh = [item for item in news if item.token_ids]
        if fresh:
            states = packed_states(fresh, self.rows.needs)
            counts = [len(item.token_ids) for item in fresh]
            numbers = [item.row.number for item in fresh]
            self.head.commit(cache, numbers, states, counts, self.backend)
            for item in fresh:
                self.rows.took(item, states[:0])
        if not news:
            return answers
        candidates = [context.candidates[item.place] for item in news]
        device = cache.kv.device
        latest = torch.tensor([c.token_ids[-1] for c in candidates], device=device)
        numbers = [item.row.number for item in news]
        chain = self.head.draft(cache, numbers, latest, self.backend)
        best = chain.logits.float().log_softmax(-1).max(-1).values.cumsum(1)
        parents = torch.arange(-1, best.shape[1] - 1)
        tree = DraftTree(chain.token_ids, parents, best)
        for item, draft in zip(news, drafts_of(tree, candidates, self.name), strict=True):
            answers[item.place] = draft
        return answers

    def describe(self) -> dict[str, Any]:
        """Return the head and the block."""
        block = f"{self.head.block.size - 1} tokens at once"
        return {"head": self.head.source, "draft": block, "sequences": len(self.rows)}
