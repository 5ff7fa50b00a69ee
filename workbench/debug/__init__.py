"""Wrong numbers: where they begin, and what attention looks at.

    from workbench import debug
    debug.first_divergence(model, transformers_model, "def f(x):")
    debug.attention_weights(engine, request_id, layers=[3], heads=[0, 5])

Nothing here runs while the engine steps: each function runs the model by itself, without a cache.
"""

from workbench.debug.attention import AttentionWeights, attention_weights
from workbench.debug.divergence import Divergence, OutputComparison, first_divergence
from workbench.debug.points import LAYER_OPS, Point

__all__ = [
    "LAYER_OPS",
    "AttentionWeights",
    "Divergence",
    "OutputComparison",
    "Point",
    "attention_weights",
    "first_divergence",
]
