"""The pieces that models are made of: plain `nn.Module`s, one per file.

They know shapes and weights. Every operation on activations goes through `ctx.backend`, so that a
layer never chooses a kernel. Imported by `workbench.models`, and by anyone who builds a model of
their own.
"""

from workbench.layers.attention import Attention
from workbench.layers.block import DecoderLayer
from workbench.layers.embedding import Embedding
from workbench.layers.linear import Linear
from workbench.layers.mlp import GatedMLP
from workbench.layers.norm import LayerNorm, RMSNorm
from workbench.layers.probe import probe
from workbench.layers.rope import RotaryEmbedding

__all__ = [
    "Attention",
    "DecoderLayer",
    "Embedding",
    "GatedMLP",
    "LayerNorm",
    "Linear",
    "RMSNorm",
    "RotaryEmbedding",
    "probe",
]
