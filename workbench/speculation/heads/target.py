"""What a draft head borrows of its target model: the embedding, the head, and names of its states.

A head holds a `Target`, which is no `nn.Module`: the target's weights are neither the head's
parameters nor part of its checkpoint. Nothing here changes the target.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.errors import ConfigError
from workbench.models.base import DecoderLM

FINAL = ""  # the model itself: hidden states after the final norm, what its head sees


class Target:
    """The target's embedding and head, as functions."""

    def __init__(self, model: DecoderLM) -> None:
        self.model = model

    @property
    def config(self) -> ModelConfig:
        """The target's shape."""
        return self.model.config

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the target's embeddings [T, hidden] of token ids [T]."""
        out: Tensor = self.model.embedding(token_ids)
        return out

    def logits(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        """Return what the target's head makes of hidden states: [T, hidden] to [T, vocab]."""
        return self.model.logits(hidden, ctx)


def stream_point(index: int, num_layers: int) -> str:
    """Return where the residual stream after `index` layers can be read (a probe point).

    That is the *input* of layer `index` and the output of layer `index - 1`, called
    `hidden_states[index]` in transformers, except that its last one has been normed.
    Raises `ConfigError` for an index that no layer has.
    """
    if not 0 <= index <= num_layers:
        raise ConfigError(
            "layer id", index, f"the target has {num_layers} layers", f"Give 0 to {num_layers}."
        )
    return "embedding" if index == 0 else f"layers.{index - 1}"


def stream_points(indices: Iterable[int], num_layers: int) -> tuple[str, ...]:
    """Return `stream_point` of each index, in order."""
    return tuple(stream_point(index, num_layers) for index in indices)
