"""EAGLE-1/2 as published: a Llama config with the key `bias`, and `fc` and `layers.{i}` tensors.

No norm in front of the first layer's attention, none at the end, no head; the embedding may be
left out. A missing `bias` means that there is one.
"""

from __future__ import annotations

from typing import Any

from workbench.speculation.heads.eagle import EagleHead
from workbench.speculation.heads.formats.found import Found
from workbench.speculation.heads.formats.shape import read_shape, write_shape


def read(found: Found) -> EagleHead:
    """Return the head that the config states. Raises `ConfigError`."""
    config, target = read_shape(found.config), found.target.config
    found.require("hidden_size", config.hidden_size, target.hidden_size, "hidden size")
    found.require("vocab_size", config.vocab_size, target.vocab_size, "vocabulary")
    bias = found.config.get("bias", True)
    if not isinstance(bias, bool):
        raise found.refuse("bias", bias, "must be true or false", "Restore it from the model.")
    return EagleHead(found.target, config, fc_bias=bias, own_embedding=found.owns_embedding())


def write(head: EagleHead, base: str) -> dict[str, Any]:
    """Return the config of a head; `base` names its target."""
    own = {"architectures": ["EagleModel"], "base_model_name_or_path": base, "bias": head.fc_bias}
    return write_shape(head.config) | own
