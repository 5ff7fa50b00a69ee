"""EAGLE-3 as published: the authors' and SpecForge's raw layout, and vLLM's `speculators`.

They differ in config keys and in the first layer's name: `midlayer` or `layers.0`. `d2t` and `t2d`
come together, or not at all if the draft vocabulary is the target's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.models import hf as read_hf
from workbench.speculation.heads.eagle3 import Eagle3Flags, Eagle3Head, default_aux_layers
from workbench.speculation.heads.formats.found import Found
from workbench.speculation.heads.formats.shape import read_shape, write_shape
from workbench.speculation.heads.vocabulary import DraftVocabulary

_AUX = "eagle_aux_hidden_state_layer_ids"


def read(found: Found) -> Eagle3Head:
    """Return the head of the raw layout. Raises `ConfigError`."""
    return _read(found, found.config, found.config)


def read_speculators(found: Found) -> Eagle3Head:
    """Return the head of the `speculators` format. Raises `ConfigError`.

    `norm_before_residual` must be stated: where it is absent, speculators reads False, vLLM True.
    """
    layer = found.config.get("transformer_layer_config")
    if not isinstance(layer, Mapping):
        fix = "Restore it from the checkpoint."
        raise found.refuse("transformer_layer_config", layer, "must be a table", fix)
    if found.config.get("norm_before_residual") is None:
        problem = "absent, and its readers disagree about what that means"
        raise found.refuse("norm_before_residual", None, problem, "State true or false.")
    return _read(found, found.config, layer)


def write(head: Eagle3Head, base: str) -> dict[str, Any]:
    """Return the raw config of a head; `base` names its target."""
    flags = head.flags
    size = head.config.vocab_size if head.vocabulary is None else len(head.vocabulary.d2t)
    return write_shape(head.config) | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "base_model_name_or_path": base,
        "draft_vocab_size": size,
        "target_hidden_size": head.target.config.hidden_size,
        _AUX: list(flags.aux_layers),
        "norm_before_residual": flags.norm_before_residual,
        "norm_output": flags.norm_output,
        "norm_before_fc": flags.norm_before_fc,
        "fc_norm": flags.fc_norm,
    }


def _read(found: Found, hf: Mapping[str, Any], layer: Mapping[str, Any]) -> Eagle3Head:
    target = found.target.config
    found.rename("layers.0.", "midlayer.")
    config = read_shape({"num_hidden_layers": 1, **layer})
    width = hf.get("target_hidden_size") or config.hidden_size
    key = "target_hidden_size" if hf.get("target_hidden_size") else "hidden_size"
    found.require(key, width, target.hidden_size, "hidden size")
    found.require("vocab_size", config.vocab_size, target.vocab_size, "vocabulary")
    flags = _flags(found, hf)
    vocabulary = _vocabulary(found, hf)
    own = found.owns_embedding()
    if not own and config.hidden_size != target.hidden_size:
        problem = f"the target's embedding is {target.hidden_size} wide, and it brings none"
        raise found.refuse("hidden_size", config.hidden_size, problem, "Add embed_tokens.weight.")
    return Eagle3Head(found.target, config, flags, vocabulary=vocabulary, own_embedding=own)


def _flags(found: Found, hf: Mapping[str, Any]) -> Eagle3Flags:
    stated = hf.get(_AUX) or (hf.get("eagle_config") or {}).get(_AUX)
    num_layers = found.target.config.num_layers
    aux = tuple(stated or default_aux_layers(num_layers))
    if not all(isinstance(i, int) and 0 <= i <= num_layers for i in aux):
        fix = f"Give layers of the target, 0 to {num_layers}."
        raise found.refuse(_AUX, list(aux), f"the target has {num_layers} layers", fix)
    flags = Eagle3Flags(
        aux,
        norm_before_residual=read_hf.flag(hf, "norm_before_residual"),
        norm_output=read_hf.flag(hf, "norm_output"),
        norm_before_fc=read_hf.flag(hf, "norm_before_fc"),
        fc_norm=read_hf.flag(hf, "fc_norm"),
    )
    if flags.norm_before_fc and flags.fc_norm:
        raise found.refuse("fc_norm", True, "excludes norm_before_fc", "Restore both.")
    return flags


def _vocabulary(found: Found, hf: Mapping[str, Any]) -> DraftVocabulary | None:
    d2t, t2d = found.take("d2t"), found.take("t2d")
    vocab = found.target.config.vocab_size
    size = read_hf.whole(hf, "draft_vocab_size", vocab)
    if d2t is None and t2d is None and size == vocab:
        return None
    if d2t is None or t2d is None:
        missing = [name for name, there in (("d2t", d2t), ("t2d", t2d)) if there is None]
        why = f"needed for draft_vocab_size={size} of {vocab}"
        found.problems += [f"missing tensor {name} ({why})" for name in missing]
        return None
    if tuple(d2t.shape) != (size,) or tuple(t2d.shape) != (vocab,):
        shapes = f"d2t {list(d2t.shape)} and t2d {list(t2d.shape)}"
        found.problems.append(f"{shapes} do not fit draft_vocab_size={size} of {vocab}")
        return None
    tables = DraftVocabulary(d2t.long(), t2d.bool())
    found.problems += tables.problems()
    return tables
