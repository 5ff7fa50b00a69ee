"""MTP as published: the extra layer in a base model's own files, or in `speculators` format.

DeepSeek's latent attention and all mixtures of experts are refused by name: a block here is a
Llama or Qwen3 layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.errors import ConfigError
from workbench.models import hf as read_hf
from workbench.speculation.heads.formats.found import Found
from workbench.speculation.heads.formats.shape import read_shape, write_shape
from workbench.speculation.heads.mtp import LAYOUTS, MTPHead

_UNREAD = {
    "q_a_proj": "latent attention",
    "kv_a_proj": "latent attention",
    "experts": "a mixture of experts",
    "mlp.gate.": "a mixture of experts",
}


def layout_of(found: Found) -> str | None:
    """Return which layout's extra layer is among the tensors; None if none is."""
    for name, layout in LAYOUTS.items():
        key = layout.names["fc"].format(layer=found.target.config.num_layers)
        if f"{key}.weight" in found.tensors:
            return name
    return None


def read(found: Found) -> MTPHead:
    """Return the head in a base model's checkpoint. Raises `ConfigError`."""
    name = layout_of(found)
    assert name is not None, "recognised by its tensors"
    found.keep_only("mtp." if name == "qwen3_next" else f"{_block(found, name)}.")
    hf = found.config
    layers = read_hf.whole(hf, "num_hidden_layers")
    found.require("num_hidden_layers", layers, found.target.config.num_layers, "number of layers")
    return _read(found, name, hf)


def read_speculators(found: Found) -> MTPHead:
    """Return the head of the `speculators` format. Raises `ConfigError`."""
    layer = found.config.get("transformer_layer_config")
    if not isinstance(layer, Mapping):
        fix = "Restore it from the checkpoint."
        raise found.refuse("transformer_layer_config", layer, "must be a table", fix)
    return _read(found, "speculators", layer)


def write(head: MTPHead, base: str) -> dict[str, Any]:
    """Return the config of a head; `base` names its target."""
    shape = write_shape(head.config)
    shape["num_hidden_layers"] = head.target.config.num_layers
    if head.gated:
        shape["attn_output_gate"] = True
    if head.rotary_dim is not None:
        shape["partial_rotary_factor"] = head.rotary_dim / head.config.head_dim
    if head.layout_name == "speculators":
        return {
            "architectures": ["MTPSpeculator"],
            "speculators_model_type": "mtp",
            "base_model_name_or_path": base,
            "transformer_layer_config": shape,
        }
    return shape | {"base_model_name_or_path": base, "num_nextn_predict_layers": 1}


def _block(found: Found, name: str) -> str:
    return LAYOUTS[name].block.format(layer=found.target.config.num_layers)


def _read(found: Found, name: str, hf: Mapping[str, Any]) -> MTPHead:
    _refuse_unread(found)
    rotary = hf.get("partial_rotary_factor")
    if rotary in (None, 1.0):
        rotary = None
    shape = read_shape({k: v for k, v in hf.items() if k != "partial_rotary_factor"}, num_layers=1)
    target = found.target.config
    found.require("hidden_size", shape.hidden_size, target.hidden_size, "hidden size")
    found.require("vocab_size", shape.vocab_size, target.vocab_size, "vocabulary")
    qk_norm = f"{_block(found, name)}.self_attn.q_norm.weight" in found.tensors
    head = MTPHead(
        found.target,
        shape,
        name,
        qk_norm=qk_norm,
        gated=read_hf.flag(hf, "attn_output_gate"),
        rotary_dim=None if rotary is None else int(shape.head_dim * rotary),
    )
    for copy in head.copies:
        is_head = copy.endswith(("head.weight", "lm_head.weight"))
        model = found.target
        weight = model.head.weight if is_head else model.embedding.weight
        found.drop_copy(copy, weight, "head" if is_head else "embedding")
    return head


def _refuse_unread(found: Found) -> None:
    for name in sorted(found.tensors):
        for part, what in _UNREAD.items():
            if part in name:
                problem = f"its block has {what}, which no layer here computes"
                fix = "Use a head whose block is a Llama or Qwen3 layer."
                raise ConfigError(found.file(name), name, problem, fix)
