"""Draft nodes as sequences, so that the sampler treats each as it would treat it in plain decoding.

A node stands for its sequence with the node's path appended: penalties, n-grams, processors, bad
words, min_tokens and the number that decides its draw all follow. Made once per sequence and kept
while it is drafted for, since a step changes only the last few tokens.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from workbench.batch import StepPlan
from workbench.draft import Draft
from workbench.errors import GuideFailed
from workbench.guide import Guide
from workbench.guided.drafts import draft_masks
from workbench.guided.guide import Guide as GrammarGuide
from workbench.request import Sequence


class MaskGuide:
    """Says once more what a guide said of one node: the masks of a draft are made together."""

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask

    def fill(self, row: Tensor) -> None:
        """Write the mask."""
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

    A node that cannot be reached gets none. Where a grammar fails on a guess, only plain decoding
    can tell whether it matters: the nodes below are then never looked at.
    """
    if not isinstance(guide, GrammarGuide):
        _fork_guides(nodes, guide, draft)
        return
    try:
        masks = draft_masks(guide, draft.token_ids, draft.parents)
    except GuideFailed:
        _fork_guides(nodes, guide, draft)
        return
    for i, node in enumerate(nodes):
        node.guide = MaskGuide(masks.bitmask[i + 1]) if masks.allowed[i] else None  # type: ignore[assignment]


def _fork_guides(nodes: list[Sequence], guide: Guide, draft: Draft) -> None:
    """The same by copies of the guide, one for each node, for guides that know no drafts."""
    for i, node in enumerate(nodes):
        parent = draft.parents[i]
        before = guide if parent < 0 else nodes[parent].guide
        node.guide = None if before is None else before.fork()
        try:
            if node.guide is not None:
                node.guide.accept(draft.token_ids[i])
        except GuideFailed:
            node.guide = None
