"""Typed reading of a Hugging Face `config.json`: numbers, rope scaling, end tokens, dtype.

Families use these to fill a `ModelConfig`. Whatever would change the result and is not understood
is a `ConfigError`, never ignored. Reads both the transformers-4 and the transformers-5 way of
stating rope.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.config import Activation, RopeScaling
from workbench.errors import ConfigError

# What each kind reads. Keys with None as value count as absent.
_ROPE_KEYS = {
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "yarn": {
        "factor",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "original_max_position_embeddings",
    },
}
_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
}
# No part of any formula here: `finetuned` is a remark, and linear scaling needs no trained length.
_NO_EFFECT = {"linear": {"original_max_position_embeddings"}, "yarn": {"finetuned"}}

# What `hidden_act` may say; the first name of each is the one that is written.
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
}


def activation(hf: Mapping[str, Any]) -> Activation:
    """Return what `hidden_act` names, silu where it is left out, or raise `ConfigError`."""
    stated = hf.get("hidden_act", "silu")
    if not isinstance(stated, str) or stated not in ACTIVATIONS:
        problem = f"only {', '.join(ACTIVATIONS)} run here"
        raise _bad("hidden_act", stated, problem, "Use another model.")
    return ACTIVATIONS[stated]


def whole(hf: Mapping[str, Any], key: str, default: int | None = None, *, least: int = 1) -> int:
    """Return a whole number of at least `least`, or raise `ConfigError`."""
    value = hf.get(key) if hf.get(key) is not None else default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        problem = f"must be a whole number of at least {least}"
        raise _bad(key, value, problem, "Restore it from the model.")
    return value


def positive(hf: Mapping[str, Any], key: str, default: float) -> float:
    """Return a finite number above 0, or raise `ConfigError`."""
    value = hf.get(key) if hf.get(key) is not None else default
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e300:
        raise _bad(key, value, "must be a number above 0", "Restore it from the model.")
    return float(value)


def flag(hf: Mapping[str, Any], key: str) -> bool:
    """Return a boolean, False where absent, or raise `ConfigError`."""
    value = hf.get(key)
    if not isinstance(value, bool | None):
        raise _bad(key, value, "must be true or false", "Restore it from the model.")
    return bool(value)


def token_ids(hf: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return the ids under a key that holds one id, a list of them, or null."""
    value = hf.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
        raise _bad(key, value, "must be a token id or a list of them", "Restore it.")
    return tuple(dict.fromkeys(ids))


def dtype_name(hf: Mapping[str, Any]) -> str | None:
    """Return the dtype it says it is in (`dtype`; before transformers 5, `torch_dtype`)."""
    value = hf.get("dtype") or hf.get("torch_dtype")
    return None if value is None else str(value).removeprefix("torch.")


def rope(hf: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Return (theta, scaling) from `rope_scaling` + `rope_theta`, or from `rope_parameters`."""
    stated = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(stated, Mapping):
        raise _bad("rope_scaling", stated, "must be a table", "Restore it from the model.")
    keys = {key: value for key, value in stated.items() if value is not None}
    kind = keys.pop("rope_type", None) or keys.get("type", "default")
    keys.pop("type", None)
    theta = positive(keys, "rope_theta", positive(hf, "rope_theta", 10_000.0))
    keys.pop("rope_theta", None)
    for partial in (keys.pop("partial_rotary_factor", 1.0), hf.get("partial_rotary_factor")):
        if partial not in (None, 1.0):
            problem = "only whole heads are rotated"
            raise _bad("partial_rotary_factor", partial, problem, "Use another model.")
    if kind == "default":
        _refuse_unknown(kind, keys, {"original_max_position_embeddings"})
        return theta, None
    if kind not in _ROPE_KEYS:
        known = f"Known: default, {', '.join(_ROPE_KEYS)}."
        raise _bad("rope_scaling.rope_type", kind, "no such rope scaling here", known)
    _refuse_unknown(kind, keys, _ROPE_KEYS[kind] | _NO_EFFECT.get(kind, set()))
    for key in _REQUIRED[kind]:
        if key not in keys:
            raise _bad(f"rope_scaling.{key}", None, f"{kind} scaling needs it", "Add it.")
    return theta, _scaling(kind, keys, hf)


def _refuse_unknown(kind: str, keys: Mapping[str, Any], known: set[str]) -> None:
    for key in sorted(keys.keys() - known):
        problem = f"not a key of {kind} scaling, and might change the result"
        raise _bad(f"rope_scaling.{key}", keys[key], problem, f"Known: {', '.join(sorted(known))}.")


def _scaling(kind: Any, keys: Mapping[str, Any], hf: Mapping[str, Any]) -> RopeScaling:
    longest = whole(hf, "max_position_embeddings")
    trained = longest
    if kind in ("llama3", "yarn"):
        trained = whole(keys, "original_max_position_embeddings", longest)
        trained = whole(hf, "original_max_position_embeddings", trained)  # transformers: this wins
    defaults = {"factor": longest / trained, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    numbers = {key: positive(keys, key, default) for key, default in defaults.items()}
    if numbers["factor"] < 1:
        raise _bad("rope_scaling.factor", numbers["factor"], "must be at least 1", "Raise it.")
    if numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        problem = "must be above low_freq_factor"
        raise _bad(
            "rope_scaling.high_freq_factor", numbers["high_freq_factor"], problem, "Raise it."
        )
    optional = {
        key: positive(keys, key, 1.0)
        for key in ("attention_factor", "mscale", "mscale_all_dim")
        if keys.get(key) not in (None, 0)
    }
    return RopeScaling(
        kind=kind,
        original_context=trained,
        beta_fast=positive(keys, "beta_fast", 32.0),
        beta_slow=positive(keys, "beta_slow", 1.0),
        truncate=keys.get("truncate") is None or flag(keys, "truncate"),
        **numbers,
        **optional,
    )


def context(hf: Mapping[str, Any], scaling: RopeScaling | None) -> int:
    """Return the longest sequence in tokens: what was trained, times what scaling adds to it.

    `max_position_embeddings` stays at the trained length for linear and dynamic scaling, and may
    for yarn; llama3 configs already state the stretched one.
    """
    longest = whole(hf, "max_position_embeddings")
    if scaling is None or scaling.original_context is None or scaling.kind == "llama3":
        return longest
    return max(longest, int(scaling.original_context * scaling.factor))


def _bad(key: str, value: Any, problem: str, fix: str) -> ConfigError:
    return ConfigError(f"config.json: {key}", value, problem, fix)
