"""`load_proposer`: from a head's folder to the proposer that drafts with it.

For whoever knows a folder and a target, and not which family lies there (`LLM(proposer=…)`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.models import DecoderLM
from workbench.speculation.dflash import DFlashProposer
from workbench.speculation.eagle import EagleProposer
from workbench.speculation.heads import (
    DFlashHead,
    Head,
    HydraHead,
    MedusaHead,
    SequentialHead,
    load_head,
)
from workbench.speculation.medusa import HydraProposer, MedusaProposer

HeadProposer = MedusaProposer | HydraProposer | EagleProposer | DFlashProposer


def load_proposer(
    folder: str | Path, target: DecoderLM, *, trees: bool | None = None, **options: Any
) -> HeadProposer:
    """Return a proposer with the head of a folder.

    trees: whether it drafts trees (None: on a GPU); DFlash has none. options: its family's other
    keywords. Raises what `load_head` and the proposer raise.
    """
    return proposer_of(load_head(folder, target), trees=trees, **options)


def proposer_of(head: Head, *, trees: bool | None = None, **options: Any) -> HeadProposer:
    """Return the proposer that drafts with a head; keywords as of `load_proposer`."""
    if isinstance(head, DFlashHead):
        return DFlashProposer(head, **options)
    if isinstance(head, MedusaHead):
        return MedusaProposer(head, trees=trees, **options)
    if isinstance(head, HydraHead):
        return HydraProposer(head, trees=trees, **options)
    assert isinstance(head, SequentialHead), f"no proposer drafts with {head.kind}"
    return EagleProposer(head, trees=trees, **options)
