"""`EarlyExit`: the target's own first layers guess what all of them would say (self-speculation).

LayerSkip (Elhoushi et al. 2024). No weights of its own: the first layers, the final norm and the
head are the target's. It keeps its own KV of these layers, so accepted tokens pass through them
twice.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import nn

from workbench.config import require_positive
from workbench.errors import ConfigError
from workbench.models import DecoderLM
from workbench.speculation.draft_model import DraftModel


class EarlyExit(DraftModel):
    """A `DraftModel` of the target's first `num_layers` layers."""

    name = "early exit"

    def __init__(self, num_layers: int, max_draft: int = 4, *, sampled: bool = False) -> None:
        """Raise `ConfigError` unless both are whole numbers from 1."""
        require_positive("EarlyExit.num_layers", num_layers)
        super().__init__(f"the first {num_layers} layers", max_draft, sampled=sampled)
        self.num_layers = num_layers

    def _load(self, model: DecoderLM) -> DecoderLM:
        return first_layers(model, self.num_layers)


def first_layers(model: DecoderLM, num_layers: int) -> DecoderLM:
    """Return a model that ends after `num_layers`, of the very modules of another.

    Raises `ConfigError` if it has no more layers than that, or none by that name.
    """
    layers = getattr(model, "layers", None)
    total = model.config.num_layers
    if not isinstance(layers, nn.ModuleList) or num_layers >= total:
        problem = f"the model has {total} layers in `layers`"
        raise ConfigError("EarlyExit.num_layers", num_layers, problem, "Take fewer.")
    view = copy.copy(model)  # shares every module
    view._modules = {**model._modules, "layers": nn.ModuleList(layers[:num_layers])}
    view.config = replace(
        model.config, num_layers=num_layers, windows=model.config.windows[:num_layers]
    )
    return view
