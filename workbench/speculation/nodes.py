"""Draft nodes as sequences, so that the sampler treats each as it would treat it in plain decoding.

A node stands for its sequence with the node's path appended: penalties, n-grams, processors, bad
words, min_tokens and the number that decides its draw all follow. Made once per sequence and kept
while it is drafted for, since a step changes only the last few tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from workbench.batch import StepPlan
from workbench.draft import Draft
from workbench.errors import GuideFailed
from workbench.guide import Guide
from workbench.guided.drafts import draft_masks
from workbench.guided.guide import Guide as GrammarGuide
from workbench.request import Sequence


class MaskGuide:
    """Says once more what a guide said of one node: the masks of a draft are made together.

    mask: None for a node that cannot be reached, of which nothing is asked.
    """

    def __init__(self, mask: Tensor | None) -> None:
        self._mask = mask

    def fill(self, row: Tensor) -> None:
        """Write the mask."""
        if self._mask is not None:
            row.copy_(self._mask)


class _Views:
    """The nodes of one sequence's drafts; each shares the first `settled` tokens with it."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.nodes: list[Sequence] = []
        self.settled: list[int] = []

    def of(self, draft: Draft) -> list[Sequence]:
        """Return a sequence for each node."""
        sequence = self.sequence
        while len(self.nodes) < len(draft):
            self.nodes.append(replace(sequence, token_ids=[]))
            self.settled.append(0)
        nodes = self.nodes[: len(draft)]
        for i, node in enumerate(nodes):
            token_ids, shared = node.token_ids, self.settled[i]
            del token_ids[shared:]
            token_ids.extend(sequence.token_ids[shared:])
            token_ids.extend(draft.token_ids[k] for k in draft.path(i))
            self.settled[i] = sequence.num_tokens
        if sequence.guide is not None:
            _guide(nodes, sequence.guide, draft)
        return nodes


class NodeViews:
    """The nodes of a plan's drafts."""

    def __init__(self) -> None:
        self._views: dict[int, _Views] = {}

    def rows(self, plan: StepPlan) -> list[Sequence]:
        """Return what each row of the pass's logits stands for: sequences, and behind one with a
        draft its nodes."""
        rows: list[Sequence] = []
        views: dict[int, _Views] = {}
        for row in plan.sampled:
            sequence, draft = plan.sequences[row], plan.drafts.get(row)
            rows.append(sequence)
            if draft is not None:
                known = self._views.get(sequence.sequence_id)
                if known is None or known.sequence is not sequence:
                    known = _Views(sequence)
                views[sequence.sequence_id] = known
                rows += known.of(draft)
        self._views = views
        return rows


def _guide(nodes: list[Sequence], guide: Guide, draft: Draft) -> None:
    """Give every node a guide that says what may follow it.

    Where a grammar fails on a guess, only plain decoding can tell whether it matters: then each
    node is asked by itself, if it comes to that.
    """
    guides: Any = _masks(guide, draft) if isinstance(guide, GrammarGuide) else None
    for node, found in zip(nodes, guides or _forks(guide, draft), strict=True):
        node.guide = found


def _masks(guide: GrammarGuide, draft: Draft) -> list[MaskGuide] | None:
    try:
        masks = draft_masks(guide, draft.token_ids, draft.parents)
    except GuideFailed:
        return None
    rows = zip(masks.bitmask[1:], masks.allowed, strict=True)
    return [MaskGuide(mask if allowed else None) for mask, allowed in rows]


def _forks(guide: Guide, draft: Draft) -> list[Guide | MaskGuide]:
    """Return a copy of the guide for each node, for guides that know no drafts."""
    found: list[Guide | MaskGuide] = []
    for token_id, parent in zip(draft.token_ids, draft.parents, strict=True):
        before = guide if parent < 0 else found[parent]
        if isinstance(before, MaskGuide):
            found.append(before)
            continue
        after = before.fork()
        try:
            after.accept(token_id)
            found.append(after)
        except GuideFailed:
            found.append(MaskGuide(None))
    return found
