"""`MedusaProposer` and `HydraProposer`: static trees from the state of the last computed token.

Medusa needs nothing but that state. Hydra's heads look at the tokens drafted before; with a prefix
layer, the states of all accepted tokens go through it first, into a cache of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.describe import Described
from workbench.draft import Draft
from workbench.errors import ConfigError
from workbench.ops import get_backend
from workbench.speculation.eagle import check_target
from workbench.speculation.head_rows import HeadRows, drafts_of, packed_states
from workbench.speculation.heads import (
    HeadCache,
    HydraHead,
    MedusaHead,
    Paths,
    chain_path,
    drafts_trees,
    fill_static,
    grow_paths,
    static_tree,
)
from workbench.speculation.heads.attention import bare_context
from workbench.speculation.proposer import Candidate, ProposalContext
from workbench.speculation.windows import check_window

if TYPE_CHECKING:
    from workbench.cache import KVCache
    from workbench.models import DecoderLM


def usual_paths(num_heads: int, size: int = 32) -> Paths:
    """Return a tree for heads whose accuracies were not measured: each rank half as often right as
    the one before it, and each head 0.8 times as often as the head before."""
    first = 0.6 * 0.8 ** torch.arange(num_heads).unsqueeze(1)
    return grow_paths(first * 0.5 ** torch.arange(10), size)


class _StaticProposer(Described):
    """A head, its static tree, and what both kinds do alike."""

    def __init__(self, head: MedusaHead | HydraHead, paths: Paths, backend: str) -> None:
        self.head, self.paths, self.tree = head, paths, static_tree(paths)
        deepest = int(self.tree.depths.max())
        if deepest > head.num_heads:
            problem = f"the head looks {head.num_heads} tokens ahead"
            raise ConfigError("paths", deepest, problem, "Drop its deepest paths.")
        self.name, self.needs = head.kind, head.needs
        self.backend = get_backend(backend, next(head.parameters()).device)

    def bind(self, model: DecoderLM, cache: KVCache) -> None:
        """Raise `ConfigError` unless the model is the head's own target, or for trees where layers
        have a window."""
        check_target(self.name, self.head.target.model, model)
        check_window(self.name, cache, is_chain=all(not any(path) for path in self.paths))
        self.close()

    def close(self) -> None:
        """Forget every sequence."""

    def describe(self) -> dict[str, Any]:
        """Return the head and the tree."""
        tree = f"{len(self.paths)} nodes, {int(self.tree.depths.max())} deep"
        return {"head": self.head.source, "draft": tree}


class MedusaProposer(_StaticProposer):
    """Proposes Medusa's tree: `paths`, else those the head was measured for, else usual ones.

    trees: without `paths`, whether to draft a tree, not each head's best token (None: on a GPU).
    """

    head: MedusaHead

    def __init__(
        self,
        head: MedusaHead,
        *,
        paths: Paths | None = None,
        trees: bool | None = None,
        backend: str = "auto",
    ) -> None:
        """Raise `ConfigError` for a tree that is deeper than there are heads."""
        super().__init__(head, paths or _paths(head, head.paths, trees), backend)

    @torch.inference_mode()
    def propose(self, context: ProposalContext) -> list[Draft | None]:
        """Return a draft for each candidate whose latest state is there."""
        answers: list[Draft | None] = [None] * len(context.candidates)
        [point] = self.needs
        ready = [(i, c, last_state(c, point)) for i, c in enumerate(context.candidates)]
        found = [(i, c, state) for i, c, state in ready if state is not None]
        if not found:
            return answers
        hidden = torch.stack([state for _, _, state in found]).to(self.head.dtype)
        tree = fill_static(self.tree, self.head(hidden, bare_context(self.backend)))
        drafts = drafts_of(tree, [candidate for _, candidate, _ in found], self.name)
        for (place, _, _), draft in zip(found, drafts, strict=True):
            answers[place] = draft
        return answers


class HydraProposer(_StaticProposer):
    """Proposes Hydra's tree, `paths` or usual ones; trees: as of `MedusaProposer`."""

    head: HydraHead

    def __init__(
        self,
        head: HydraHead,
        *,
        paths: Paths | None = None,
        trees: bool | None = None,
        backend: str = "auto",
    ) -> None:
        """Raise `ConfigError` for a tree that is deeper than there are heads."""
        super().__init__(head, paths or _paths(head, None, trees), backend)
        self.close()

    def close(self) -> None:
        """Forget every sequence."""
        shape, device = self.head.prefix_config, next(self.head.parameters()).device
        cache = None
        if shape is not None:
            cache = HeadCache(shape, 1, dtype=self.head.dtype, device=device)
        self.rows = HeadRows(self.needs, cache)

    @torch.inference_mode()
    def propose(self, context: ProposalContext) -> list[Draft | None]:
        """Return a draft for each candidate whose states are all there."""
        answers: list[Draft | None] = [None] * len(context.candidates)
        news = self.rows.update(context.candidates)
        fresh = [item for item in news if item.token_ids]
        if fresh:
            for item, last in zip(fresh, self._prefixes(fresh), strict=True):
                self.rows.took(item, last)
        if not news:
            return answers
        prefix = torch.stack([item.row.kept for item in news if item.row.kept is not None])
        candidates = [context.candidates[item.place] for item in news]
        latest = torch.tensor([c.token_ids[-1] for c in candidates], device=prefix.device)
        tree = self.head.draft(prefix, latest, self.tree, self.backend)
        for item, draft in zip(news, drafts_of(tree, candidates, self.name), strict=True):
            answers[item.place] = draft
        return answers

    def _prefixes(self, news: list[Any]) -> Tensor:
        """Return what the heads read of each row's last state: [R, hidden]."""
        counts = [len(item.token_ids) for item in news]
        states = packed_states(news, self.rows.needs).to(self.head.dtype)
        ends = (torch.tensor(counts).cumsum(0) - 1).to(states.device)
        cache = self.rows.cache
        if cache is None:
            return states[ends]
        numbers = [item.row.number for item in news]
        out = self.head.prefix(states, cache.extend(numbers, counts, self.backend))
        cache.commit(numbers, counts)
        return out[ends]


def _paths(head: MedusaHead | HydraHead, measured: Paths | None, trees: bool | None) -> Paths:
    """Return what a head drafts where nobody says."""
    if drafts_trees(next(head.parameters()).device, trees):
        return measured or usual_paths(head.num_heads)
    return chain_path(head.num_heads)


def last_state(candidate: Candidate, point: str) -> Tensor | None:
    """Return the state [hidden] of the token before the last; None if it is not there."""
    states = candidate.states
    if states is None or states.stop != len(candidate.token_ids) - 1:
        return None
    return states.rows[point][-1]
