"""Guided decoding: text that meets a JSON schema, regular expression, grammar, choice or structural
tag, through xgrammar and llguidance.

`GrammarCompiler` turns `GuidedDecodingParams` into a `CompiledGrammar`, whose `Guide` walks one
sequence; `mask_logits` forbids in a batch of logits what the guides forbid.
"""

from workbench.guided.cache import GrammarCache
from workbench.guided.compiled import CompiledGrammar
from workbench.guided.compiler import GrammarCompiler
from workbench.guided.drafts import DraftMasks, draft_masks
from workbench.guided.guide import Guide
from workbench.guided.logits import mask_logits
from workbench.guided.mask import allocate_bitmask, apply_bitmask
from workbench.guided.vocabulary import Vocabulary

__all__ = [
    "CompiledGrammar",
    "DraftMasks",
    "GrammarCache",
    "GrammarCompiler",
    "Guide",
    "Vocabulary",
    "allocate_bitmask",
    "apply_bitmask",
    "draft_masks",
    "mask_logits",
]
