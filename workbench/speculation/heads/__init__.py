"""Draft heads: modules beside a target model that guess its next tokens, in published layouts.

`load_head(folder, target)` reads any of them. Medusa and Hydra draft static trees from one state;
EAGLE and MTP (`SequentialHead`) go step by step, driven by `commit`, `draft_chain` and `draft_tree`
over a `HeadCache`; DFlash drafts a block at once. None of them knows the engine.
"""

from workbench.speculation.heads.base import Head, SequentialHead
from workbench.speculation.heads.cache import HeadCache
from workbench.speculation.heads.dflash import DFlashBlock, DFlashHead
from workbench.speculation.heads.drive import commit, draft_chain, draft_tree, new_cache
from workbench.speculation.heads.dynamic_tree import TreeShape
from workbench.speculation.heads.eagle import EagleHead
from workbench.speculation.heads.eagle3 import Eagle3Flags, Eagle3Head, default_aux_layers
from workbench.speculation.heads.hydra import HydraHead
from workbench.speculation.heads.loader import load_head, save_head
from workbench.speculation.heads.medusa import MedusaHead
from workbench.speculation.heads.mtp import MTPHead
from workbench.speculation.heads.tree import (
    DraftTree,
    Paths,
    chain_path,
    drafts_trees,
    fill_static,
    grow_paths,
    rank_accuracy,
    static_tree,
)
from workbench.speculation.heads.vocabulary import DraftVocabulary

__all__ = [
    "DFlashBlock",
    "DFlashHead",
    "DraftTree",
    "DraftVocabulary",
    "Eagle3Flags",
    "Eagle3Head",
    "EagleHead",
    "Head",
    "HeadCache",
    "HydraHead",
    "MTPHead",
    "MedusaHead",
    "Paths",
    "SequentialHead",
    "TreeShape",
    "chain_path",
    "commit",
    "default_aux_layers",
    "draft_chain",
    "draft_tree",
    "drafts_trees",
    "fill_static",
    "grow_paths",
    "load_head",
    "new_cache",
    "rank_accuracy",
    "save_head",
    "static_tree",
]
