"""`mask_logits`: one call that holds a batch of logits to the guides of its rows.

The sampler calls it before it reads a row: before temperature and filters, after penalties and
processors, which could otherwise raise what is forbidden. It never advances a guide.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.errors import GuideFailed
from workbench.guided.guide import Guide
from workbench.guided.mask import allocate_bitmask, apply_bitmask


def mask_logits(logits: Tensor, guides: Sequence[Guide | None]) -> None:
    """Forbid in every row of logits [R, V] what its guide forbids, in place; None: nothing.

    Changes no guide. Raises `GuideFailed` if a guide cannot go on, before any row is written.
    """
    assert len(guides) == logits.shape[0], "one guide, or None, for each row"
    guided = [(row, guide) for row, guide in enumerate(guides) if guide is not None]
    if not guided:
        return
    bitmask = allocate_bitmask(len(guided), logits.shape[1], logits.device)
    problems: dict[int, str] = {}
    for mask, (row, guide) in zip(bitmask, guided, strict=True):
        try:
            guide.fill(mask)
        except GuideFailed as error:
            problems[row] = error.problem
    if problems:
        raise GuideFailed("; ".join(dict.fromkeys(problems.values())), problems)
    whole = len(guided) == logits.shape[0]
    rows = None if whole else torch.tensor([row for row, _ in guided]).to(logits.device)
    apply_bitmask(logits, bitmask.to(logits.device, non_blocking=True), rows)
