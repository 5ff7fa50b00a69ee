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


def load_proposer(folder: str | Path, target: DecoderLM, **options: Any) -> HeadProposer:
    """Return a proposer with the head of a folder; options are its family's keywords.

    Raises what `load_head` and the proposer raise.
    """
    return proposer_of(load_head(folder, target), **options)


def proposer_of(head: Head, **options: Any) -> HeadProposer:
    """Return the proposer that drafts with a head."""
    if isinstance(head, MedusaHead):
        return MedusaProposer(head, **options)
    if isinstance(head, HydraHead):
        return HydraProposer(head, **options)
    if isinstance(head, DFlashHead):
        return DFlashProposer(head, **options)
    assert isinstance(head, SequentialHead), f"no proposer drafts with {head.kind}"
    return EagleProposer(head, **options)
