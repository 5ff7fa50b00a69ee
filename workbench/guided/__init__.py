"""Guided decoding: text that meets a JSON schema, regular expression, grammar, choice or structural
tag, through xgrammar and llguidance.

`GrammarCompiler` turns `GuidedDecodingParams` into a `CompiledGrammar`, whose `Guide` walks one
sequence. The sampler asks it for a bitmask (`workbench.sample.bitmask`).
"""

from workbench.guided.cache import GrammarCache
from workbench.guided.compiled import CompiledGrammar
from workbench.guided.compiler import GrammarCompiler
from workbench.guided.drafts import DraftMasks, draft_masks
from workbench.guided.guide import Guide
from workbench.guided.vocabulary import Vocabulary

__all__ = [
    "CompiledGrammar",
    "DraftMasks",
    "GrammarCache",
    "GrammarCompiler",
    "Guide",
    "Vocabulary",
    "draft_masks",
]
