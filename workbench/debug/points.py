"""The points at which two models are compared: what each operation of a decoder gives out.

In the order in which a forward pass comes by, so that the first that differs is the operation that
is wrong: what goes into it is equal.
"""

from __future__ import annotations

from typing import NamedTuple

# A decoder layer's operations. `*_residual`: the residual stream after adding attention, and after
# adding the feed-forward part; `attention`: heads mixed, before `o_proj`; `activation`: silu(gate)
# * up.
LAYER_OPS = (
    "attention_norm",
    "q_proj",
    "k_proj",
    "v_proj",
    "q_rope",
    "k_rope",
    "attention",
    "o_proj",
    "attention_residual",
    "mlp_norm",
    "gate_proj",
    "up_proj",
    "activation",
    "down_proj",
    "mlp_residual",
)
# What these give out is [T, heads, D].
HEAD_OPS = frozenset(("q_proj", "k_proj", "v_proj", "q_rope", "k_rope", "attention"))


class Point(NamedTuple):
    """An operation's output: of a layer, or of the model (None) `embedding`, `norm` or `head`."""

    layer: int | None
    op: str

    def __str__(self) -> str:
        """Return `layers.3.q_rope`, or `head`."""
        return self.op if self.layer is None else f"layers.{self.layer}.{self.op}"


def in_order(num_layers: int) -> list[Point]:
    """Return all points of a model, as a forward pass comes by."""
    layers = [Point(layer, op) for layer in range(num_layers) for op in LAYER_OPS]
    return [Point(None, "embedding"), *layers, Point(None, "norm"), Point(None, "head")]
