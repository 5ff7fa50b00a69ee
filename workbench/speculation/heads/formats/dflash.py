"""DFlash as published: a Qwen3 config with `dflash_config`, or vLLM's `speculators` format.

`target_layer_ids` are layers whose *output* is read; speculators' `aux_hidden_state_layer_ids`
count inputs, as EAGLE-3's do: one more for the same place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.models import hf as read_hf
from workbench.speculation.heads.dflash import DFlashBlock, DFlashHead, default_target_layers
from workbench.speculation.heads.formats.found import Found
from workbench.speculation.heads.formats.shape import read_shape, write_shape


def read(found: Found) -> DFlashHead:
    """Return the head of the authors' layout. Raises `ConfigError`."""
    hf = found.config
    own = hf.get("dflash_config")
    if not isinstance(own, Mapping):
        raise found.refuse("dflash_config", own, "must be a table", "Restore it.")
    num_target = read_hf.whole(hf, "num_target_layers", found.target.config.num_layers)
    expected = found.target.config.num_layers
    found.require("num_target_layers", num_target, expected, "number of layers")
    shape = read_shape(hf)
    usual = default_target_layers(num_target, shape.num_layers)
    layers = tuple(own.get("target_layer_ids") or usual)
    return _read(found, hf, own, layers, read_hf.whole(hf, "block_size", 16))


def read_speculators(found: Found) -> DFlashHead:
    """Return the head of the `speculators` format. Raises `ConfigError`."""
    hf = found.config
    layer = hf.get("transformer_layer_config")
    if not isinstance(layer, Mapping):
        fix = "Restore it from the checkpoint."
        raise found.refuse("transformer_layer_config", layer, "must be a table", fix)
    projector = hf.get("projector_type", "dflash")
    if projector != "dflash":
        raise found.refuse("projector_type", projector, "is not read", "Known: dflash.")
    vocab = found.target.config.vocab_size
    drafts = read_hf.whole(hf, "draft_vocab_size", vocab)
    found.require("draft_vocab_size", drafts, vocab, "vocabulary, which this format must share,")
    inputs = hf.get("aux_hidden_state_layer_ids")
    if not isinstance(inputs, list) or not all(isinstance(i, int) and i > 0 for i in inputs):
        problem = "must list the layers whose inputs are read"
        raise found.refuse("aux_hidden_state_layer_ids", inputs, problem, "Restore it.")
    outputs = tuple(i - 1 for i in inputs)
    return _read(found, layer, hf, outputs, read_hf.whole(hf, "block_size", 8))


def write(head: DFlashHead, base: str) -> dict[str, Any]:
    """Return the authors' config of a head; `base` names its target."""
    return write_shape(head.config) | {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "base_model_name_or_path": base,
        "block_size": head.block.size,
        "num_target_layers": head.target.config.num_layers,
        "dflash_config": {
            "mask_token_id": head.block.mask_token_id,
            "target_layer_ids": list(head.block.target_layers),
        },
    }


def _read(
    found: Found,
    shape_keys: Mapping[str, Any],
    own: Mapping[str, Any],
    layers: tuple[int, ...],
    block_size: int,
) -> DFlashHead:
    config, target = read_shape(shape_keys), found.target.config
    found.require("hidden_size", config.hidden_size, target.hidden_size, "hidden size")
    found.require("vocab_size", config.vocab_size, target.vocab_size, "vocabulary")
    mask = read_hf.whole(own, "mask_token_id", least=0)
    if mask >= target.vocab_size:
        problem = f"the target has {target.vocab_size} tokens"
        raise found.refuse("mask_token_id", mask, problem, "Restore it from the checkpoint.")
    if not all(isinstance(i, int) and 0 <= i < target.num_layers for i in layers):
        problem = f"the target has {target.num_layers} layers"
        raise found.refuse("target_layer_ids", list(layers), problem, "Restore it.")
    if "sliding_attention" in (shape_keys.get("layer_types") or ()):
        raise found.refuse("layer_types", "sliding_attention", "is not read", "Use full attention.")
    found.drop_copy("embed_tokens.weight", found.target.embedding.weight, "embedding")
    found.drop_copy("lm_head.weight", found.target.head.weight, "head")
    return DFlashHead(found.target, config, DFlashBlock(block_size, mask, layers))
