"""Speculative decoding: proposers guess tokens, one pass verifies all guesses, a rule decides.

    llm = wb.LLM("tinypy", proposer=wb.speculation.NGram())

A proposer (`NGram`, …, or your own: one method) returns a `Draft` for each sequence; the scheduler
puts it into the step's batch, the runner computes all its nodes at once, and `Verifier` decides
which are kept. By default a request's tokens are, one for one, those it has without speculation.
"""

from workbench.draft import Draft, DraftError
from workbench.speculation.config import SpeculationConfig
from workbench.speculation.draft_model import DraftModel
from workbench.speculation.early_exit import EarlyExit
from workbench.speculation.lookahead import Lookahead
from workbench.speculation.named import get_proposer
from workbench.speculation.ngram import NGram
from workbench.speculation.proposer import (
    Candidate,
    ProposalContext,
    Proposer,
    ProposerFailed,
    ProposerMemory,
    Verified,
)
from workbench.speculation.rules import (
    RULES,
    ExactMatch,
    OneHot,
    Rejection,
    Relaxed,
    Rule,
    Synthetic,
    Typical,
    Verdict,
)
from workbench.speculation.states import States
from workbench.speculation.suffix import SuffixAutomaton
from workbench.speculation.verify import Verifier

__all__ = [
    "RULES",
    "Candidate",
    "Draft",
    "DraftError",
    "DraftModel",
    "EarlyExit",
    "ExactMatch",
    "Lookahead",
    "NGram",
    "OneHot",
    "ProposalContext",
    "Proposer",
    "ProposerFailed",
    "ProposerMemory",
    "Rejection",
    "Relaxed",
    "Rule",
    "SpeculationConfig",
    "States",
    "SuffixAutomaton",
    "Synthetic",
    "Typical",
    "Verdict",
    "Verified",
    "Verifier",
    "get_proposer",
]
