"""`get_proposer`: from what a user calls a proposer to one that drafts.

A name of those that need no weights, what ships with a model, a checkpoint's folder, or a proposer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError
from workbench.models import DecoderLM
from workbench.models.checkpoint import Checkpoint
from workbench.models.resolve import resolve_attached
from workbench.speculation.draft_model import DraftModel
from workbench.speculation.head_proposers import load_proposer
from workbench.speculation.lookahead import Lookahead
from workbench.speculation.ngram import NGram
from workbench.speculation.proposer import Proposer
from workbench.speculation.suffix import SuffixAutomaton

# Those that need nothing but the request's tokens and the model.
PLAIN: dict[str, Callable[[], Any]] = {
    "ngram": NGram,
    "suffix": SuffixAutomaton,
    "lookahead": Lookahead,
}


def get_proposer(
    proposer: str | Path | Proposer | None,
    target: DecoderLM,
    model: str = "",
    *,
    trees: bool | None = None,
) -> Proposer | None:
    """Return a proposer for `target`.

    proposer: a name in `PLAIN`, a name under `adapters/<model>/`, a folder with a draft head in a
    published layout or with a whole draft model, or a proposer, which is returned as it is. model:
    what the target is called, if it was not loaded by that name. trees: whether heads that can
    draft trees do (None: on a GPU). Raises `ConfigError` for what is nowhere found, and what
    reading it raises.
    """
    if not isinstance(proposer, str | Path):
        return proposer
    if isinstance(proposer, str) and proposer in PLAIN:
        made: Proposer = PLAIN[proposer]()
        return made
    try:
        folder = resolve_attached(proposer, model or target.source)
    except ConfigError as error:
        fix = f"{error.fix} Or one of {', '.join(PLAIN)}, or a `Proposer`."
        raise ConfigError("proposer", error.value, error.problem, fix) from None
    if _is_whole_model(folder):
        return DraftModel(folder)
    return load_proposer(folder, target, trees=trees)


def _is_whole_model(folder: Path) -> bool:
    """Whether a folder holds a model that drafts by itself, and no head of any kind.

    By its tensors: EAGLE's heads, too, call themselves `LlamaForCausalLM`.
    """
    with Checkpoint(folder) as checkpoint:
        names = checkpoint.tensors.keys()
    heads = "mtp.", "medusa_head.", "hydra_"
    extra = any(".eh_proj." in name or name.startswith(heads) for name in names)
    return not extra and any(name.startswith("model.layers.0.") for name in names)
