"""`EagleProposer`: drafts of a head that goes on from the target's states, token by token.

For EAGLE-1, 2 and 3 and MTP alike: the states of accepted tokens extend the head's own cache, and
from the last of them it drafts a tree (EAGLE-2's dynamic one), or a chain.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.batch import Backend
from workbench.config import require_positive
from workbench.describe import Described
from workbench.draft import Draft
from workbench.errors import ConfigError
from workbench.ops import get_backend
from workbench.speculation.fixed_drafter import FixedDrafter, New
from workbench.speculation.head_rows import (
    HeadRows,
    News,
    chains_of,
    drafts_of,
    packed_states,
)
from workbench.speculation.heads import (
    SequentialHead,
    TreeShape,
    commit,
    draft_tree,
    drafts_trees,
    new_cache,
)
from workbench.speculation.heads.cache import HeadCache
from workbench.speculation.heads.tree import DraftTree
from workbench.speculation.proposer import Candidate, ProposalContext
from workbench.speculation.windows import check_window

if TYPE_CHECKING:
    from workbench.cache import KVCache
    from workbench.models import DecoderLM


_TREE, _CHAIN = TreeShape(32, 6, 8), TreeShape(4, 4, 1)


class EagleProposer(Described):
    """Proposes what a `SequentialHead` drafts: trees of this shape, or chains of `length`."""

    def __init__(
        self,
        head: SequentialHead,
        *,
        shape: TreeShape | None = None,
        length: int | None = None,
        trees: bool | None = None,
        backend: str = "auto",
        fixed: bool | None = None,
    ) -> None:
        """trees: with neither shape nor length, whether to draft trees (None: on a GPU). fixed:
        whether drafts are made in passes of one shape (None: where these can be captured). Raise
        `ConfigError` for a length below 1, or beside a shape."""
        if length is not None:
            require_positive("EagleProposer.length", length)
            if shape is not None:
                fix = "Give shape for trees, or length for chains."
                raise ConfigError("EagleProposer.length", length, "stands beside a shape", fix)
        device = next(head.parameters()).device
        chain = None if length is None else TreeShape(length, length, 1)
        usual = _TREE if drafts_trees(device, trees) else _CHAIN
        self.head, self.shape = head, shape or chain or usual
        self.name, self.needs = head.kind, head.needs
        self.backend: Backend = get_backend(backend, device)
        self.rows = HeadRows(head.needs, new_cache(head, 1))
        graphs = device.type == "cuda" and self.backend.capturable
        self.drafter: FixedDrafter | None = None
        if graphs if fixed is None else fixed:
            self.drafter = FixedDrafter(head, self.shape, self.backend, graphs=graphs)

    def bind(self, model: DecoderLM, cache: KVCache) -> None:
        """Start afresh for a model. Raise `ConfigError` unless it is the head's own target, or for
        trees where layers have a window."""
        check_target(self.name, self.head.target.model, model)
        check_window(self.name, cache, is_chain=self.shape.top_k == 1)
        self.close()

    def close(self) -> None:
        """Forget every sequence."""
        self.rows = HeadRows(self.head.needs, new_cache(self.head, 1))
        if self.drafter is not None:
            self.drafter.clear()

    @torch.inference_mode()
    def propose(self, context: ProposalContext) -> list[Draft | None]:
        """Return a draft for each candidate whose states are all there."""
        answers: list[Draft | None] = [None] * len(context.candidates)
        news = self.rows.update(context.candidates)
        if not news:
            return answers
        cache = self.rows.cache
        assert cache is not None
        candidates = [context.candidates[item.place] for item in news]
        if self.drafter is not None and all(item.token_ids for item in news):
            tree = self._in_one(self.drafter, cache, news, candidates)
        else:
            tree = self._stepwise(cache, news, candidates)
        make = chains_of if self.shape.top_k == 1 else drafts_of
        for item, draft in zip(news, make(tree, candidates, self.name), strict=True):
            answers[item.place] = draft
        return answers

    def _stepwise(
        self, cache: HeadCache, news: list[News], candidates: list[Candidate]
    ) -> DraftTree:
        """Return what is drafted level by level."""
        self._commit(cache, [item for item in news if item.token_ids])
        last_outs = torch.stack([_kept(item.row.kept) for item in news])
        numbers = [item.row.number for item in news]
        depths = torch.tensor([c.max_depth for c in candidates])
        shape = replace(self.shape, depth=min(self.shape.depth, int(depths.max())))
        return draft_tree(self.head, cache, numbers, last_outs, shape, self.backend, depths)

    def _commit(self, cache: HeadCache, fresh: list[News]) -> None:
        """Give rows what is new of them, and keep what the head says of the last."""
        if not fresh:
            return
        tokens = torch.tensor([i for item in fresh for i in item.token_ids])
        states = packed_states(fresh, self.rows.needs)
        numbers, counts = _rows_and_counts(fresh)
        tokens = tokens.to(states.device)
        out = commit(self.head, cache, numbers, tokens, states, counts, self.backend)
        for item, last in zip(fresh, out, strict=True):
            self.rows.took(item, last)

    def _in_one(
        self,
        drafter: FixedDrafter,
        cache: HeadCache,
        news: list[News],
        candidates: list[Candidate],
    ) -> DraftTree:
        """Return what is drafted in one pass, behind rows that all have something new; what is
        too long for it, a prompt, goes in before."""
        last = news
        if any(len(item.token_ids) > drafter.width for item in news):
            pairs = [_parted(item, drafter.width) for item in news]
            self._commit(cache, [before for before, _ in pairs if before.token_ids])
            last = [item for _, item in pairs]
        tokens = [i for item in last for i in item.token_ids]
        depths = [min(c.max_depth, self.shape.depth) for c in candidates]
        new = New(*_rows_and_counts(last), tokens, packed_states(last, self.rows.needs), depths)
        tree = drafter.draft(cache, new, self.rows.unused)
        for item in last:
            self.rows.took(item, None)
        return tree

    def describe(self) -> dict[str, Any]:
        """Return the head, the shape and who is followed."""
        shape = f"{self.shape.num_nodes} nodes, {self.shape.depth} deep, {self.shape.top_k} wide"
        return {"head": self.head.source, "draft": shape, "sequences": len(self.rows)}


def check_target(name: str, target: DecoderLM, model: DecoderLM) -> None:
    """Raise `ConfigError` unless a head drafts for the model that it was loaded beside."""
    if target is not model:
        fix = "Load it with `load_head(folder, engine.model)`."
        raise ConfigError("proposer", name, "was loaded beside another model object", fix)


def _parted(news: News, width: int) -> tuple[News, News]:
    """Return what goes in before, and the rest: the last pair where there are more than `width`."""
    if len(news.token_ids) <= width:
        return news._replace(token_ids=[]), news
    return news.parted(len(news.token_ids) - 1)


def _rows_and_counts(news: list[Any]) -> tuple[list[int], list[int]]:
    return [item.row.number for item in news], [len(item.token_ids) for item in news]


def _kept(kept: Tensor | None) -> Tensor:
    assert kept is not None, "a row that holds something keeps what was said of it"
    return kept
