"""What adapters may change in a model: its linear layers and its embedding, as checkpoints name
them.

A checkpoint's `model.layers.0.self_attn.q_proj` is some rows of our `layers.0.attention.qkv_proj`;
which ones, the family's weight rules say. Used by the reader, the pool and the merger.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from workbench.models import DecoderLM
from workbench.models.weights import expand


@dataclass(frozen=True, slots=True)
class Target:
    """A matrix [outputs, inputs] (an embedding: [vocab, hidden]) that an adapter can change.

    path: the module in checkpoints. layer: ours; it fills `rows` of its weight. is_head: it makes
    the logits.
    """

    path: str
    layer: str
    rows: slice
    outputs: int
    inputs: int
    is_embedding: bool = False
    is_head: bool = False
    has_bias: bool = False

    @property
    def num_added(self) -> int:
        """How many numbers a token gets from it: outputs, or an embedding's hidden size."""
        return self.inputs if self.is_embedding else self.outputs

    @property
    def num_read(self) -> int:
        """How many numbers a vector of `lora_A` has: inputs, or an embedding's vocabulary."""
        return self.outputs if self.is_embedding else self.inputs


def targets_of(model: DecoderLM) -> dict[str, Target]:
    """Return everything adapters may change in a model, by its path in checkpoints."""
    named = model.named_parameters(remove_duplicate=False)  # a tied head is a target of its own
    shapes = {name: tuple(parameter.shape) for name, parameter in named}
    parts = model.weight_parts(model.config)
    found = {}
    for piece in expand(model.weight_rules, parts, shapes, model.config.num_layers):
        layer, _, leaf = piece.target.rpartition(".")
        module = model.get_submodule(layer)
        if leaf != "weight" or not isinstance(module, nn.Linear | nn.Embedding):
            continue
        path, (outputs, inputs) = piece.source.removesuffix(".weight"), piece.shape
        found[path] = Target(
            path,
            layer,
            piece.rows,
            outputs,
            inputs,
            is_embedding=isinstance(module, nn.Embedding),
            is_head=module is model.head,
            has_bias=isinstance(module, nn.Linear) and module.bias is not None,
        )
    return found


def bounds_of(targets: dict[str, Target], layer: str) -> tuple[int, ...]:
    """Return where the parts of a layer's outputs begin, and where the last ends."""
    mine = [target for target in targets.values() if target.layer == layer]
    if mine[0].is_embedding:
        return (0, mine[0].inputs)
    return (*sorted({t.rows.start for t in mine}), max(t.rows.stop for t in mine))


def dtype_of(model: DecoderLM) -> torch.dtype:
    """Return what rank rows are held in: the dtype of the model's embedding."""
    return model.embedding.weight.dtype
