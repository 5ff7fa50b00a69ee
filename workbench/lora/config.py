"""`LoRAConfig`: what `adapter_config.json` says, typed and checked.

The file is PEFT's (`peft/tuners/lora/config.py`). Keys that change the arithmetic are read or
refused with file, key and value; keys that only matter in training are skipped; of unknown keys
only those that say nothing (null, false, empty) pass. Nothing in here knows a model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import AdapterError
from workbench.lora.token_indices import Indices, parse_indices

CONFIG = "adapter_config.json"
FIX = "Export the adapter again with PEFT's `save_pretrained`, or merge it into its base."
ALL_LINEAR = "all-linear"
_MAX_BYTES, _MAX_PATTERN, _MAX_RANK = 1 << 20, 512, 1 << 16
# What is only of training, or of how the file was made.
_SKIPPED = frozenset(
    {
        *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode"),
        *("lora_dropout", "init_lora_weights", "loftq_config", "eva_config", "corda_config"),
        *("lora_ga_config", "megatron_core", "qalora_group_size", "runtime_config"),
        *("ensure_weight_tying", "fan_in_fan_out", "peft_type", "base_model_name_or_path"),
    }
)
_READ = frozenset(
    {
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"),
        *("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias"),
        *("lora_bias", "use_dora", "target_parameters"),
        "trainable_token_indices",
    }
)
# Initialisations that write into the base as well; converted when saved, they are plain LoRA.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class LoRAConfig:
    """An adapter's settings, by PEFT's names.

    target_modules: names (a module's path ends in one), a regular expression for whole paths, or
    "all-linear". rank_pattern and alpha_pattern: regular expressions for the ends of paths -> what
    is there in place of `r` and `lora_alpha`; the first that fits counts. target_parameters: ends
    of paths of fused parameters, see `workbench.lora.experts`. token_indices: rows, by module.
    """

    r: int
    lora_alpha: float
    target_modules: tuple[str, ...] | str
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    exclude_modules: tuple[str, ...] | str = ()
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"
    lora_bias: bool = False
    use_dora: bool = False
    target_parameters: tuple[str, ...] = ()
    token_indices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    base_model: str | None = None

    def rank(self, path: str) -> int:
        """Return the rank at a module."""
        return int(_by_pattern(self.rank_pattern, path, self.r))

    def alpha(self, path: str) -> float:
        """Return alpha at a module."""
        return _by_pattern(self.alpha_pattern, path, self.lora_alpha)

    def scale(self, path: str) -> float:
        """Return what B A x is multiplied with at a module: alpha / r, or alpha / sqrt(r)."""
        alpha, rank = self.alpha(path), self.rank(path)
        return float(alpha / (math.sqrt(rank) if self.use_rslora else rank))

    def saves(self, path: str) -> bool:
        """Whether a module is stored whole, in place of the base's."""
        return any(re.match(rf"(^|.*\.){re.escape(m)}($|\..*)", path) for m in self.modules_to_save)

    def targets(self, path: str, *, is_head: bool = False, is_embedding: bool = False) -> bool:
        """Whether a module of the base gets a pair of A and B, by PEFT's rules."""
        if _named(self.exclude_modules, path) or self.saves(path):
            return False
        if self.target_modules == ALL_LINEAR:
            return not is_head and not is_embedding
        if not _named(self.target_modules, path):
            return False
        if isinstance(self.target_modules, str) or not self.layers_to_transform:
            return True
        for pattern in self.layers_pattern or (r"[^.]*",):
            found = re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", path)
            if found is not None:
                return int(found["idx"]) in self.layers_to_transform
        return False

    def to_json(self) -> dict[str, Any]:
        """Return the file's content, for PEFT to read."""
        many, excluded = self.target_modules, self.exclude_modules
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model,
            "inference_mode": True,
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "use_rslora": self.use_rslora,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "target_modules": many if isinstance(many, str) else list(many),
            "exclude_modules": (excluded if isinstance(excluded, str) else list(excluded)) or None,
            "layers_to_transform": list(self.layers_to_transform) or None,
            "layers_pattern": list(self.layers_pattern) or None,
            "modules_to_save": list(self.modules_to_save) or None,
            "bias": self.bias,
            "lora_bias": self.lora_bias,
            "use_dora": self.use_dora,
            "lora_dropout": 0.0,
        }


def read_config(folder: Path) -> LoRAConfig:
    """Return the settings of an adapter's folder; raise `AdapterError` with every fault."""
    path = folder / CONFIG
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"is larger than {_MAX_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(folder, [f"{CONFIG} cannot be read: {error}"], FIX) from error
    return parse_config(content, folder)


def parse_config(content: Any, folder: Path) -> LoRAConfig:
    """Return the settings in a file's content; raise `AdapterError` with every fault."""
    if not isinstance(content, dict):
        raise AdapterError(folder, [f"{CONFIG} is not a table"], FIX)
    reader = _Reader(content)
    reader.refuse_unsupported()
    config = LoRAConfig(
        r=reader.rank("r", content.get("r")),
        lora_alpha=reader.number("lora_alpha", content.get("lora_alpha")),
        target_modules=reader.names("target_modules", pattern=True),
        use_rslora=reader.flag("use_rslora"),
        rank_pattern={k: reader.rank(f"rank_pattern[{k!r}]", v)
                      for k, v in reader.patterns("rank_pattern")},
        alpha_pattern={k: reader.number(f"alpha_pattern[{k!r}]", v)
                       for k, v in reader.patterns("alpha_pattern")},
        exclude_modules=reader.names("exclude_modules", pattern=True),
        layers_to_transform=reader.layers(),
        layers_pattern=reader.layer_patterns(),
        modules_to_save=tuple(reader.names("modules_to_save", pattern=False)),
        bias=reader.bias(),
        lora_bias=reader.flag("lora_bias"),
        use_dora=reader.flag("use_dora"),
        target_parameters=tuple(reader.names("target_parameters", pattern=False)),
        token_indices=reader.indices("trainable_token_indices"),
        base_model=reader.text("base_model_name_or_path"),
    )  # fmt: skip
    others = config.modules_to_save, config.target_parameters, config.token_indices
    if not config.target_modules and not any(others):
        reader.wrong("target_modules", "names no module")
    if config.use_dora and config.lora_bias:
        reader.wrong("use_dora", "goes with no lora_bias, in PEFT neither")
    if reader.problems:
        raise AdapterError(folder, reader.problems, FIX)
    return config


class _Reader:
    """Reads values, and notes what is wrong with them."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content, self.problems = content, list[str]()

    def wrong(self, key: str, problem: str, value: Any = None) -> None:
        value = self.content.get(key) if value is None else value
        shown = repr(value)
        shown = shown if len(shown) < 120 else shown[:119] + "…"
        self.problems.append(f"{CONFIG}: {key}={shown}: {problem}")

    def refuse_unsupported(self) -> None:
        content = self.content
        if content.get("peft_type") != "LORA":
            self.wrong("peft_type", "only LORA adapters are read")
        if content.get("fan_in_fan_out"):
            self.wrong("fan_in_fan_out", "is for transposed bases (GPT-2), which do not run here")
        init = content.get("init_lora_weights")
        if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
            self.wrong("init_lora_weights", "changes the base's weights too, unless converted")
        for key in sorted(map(str, content.keys() - _SKIPPED - _READ)):
            if content[key] not in (None, False, 0, "", [], {}):
                self.wrong(key, "is not supported: it changes what the adapter computes")

    def rank(self, key: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MAX_RANK:
            self.wrong(key, f"must be a whole number from 1 to {_MAX_RANK}", value)
            return 1
        return value

    def number(self, key: str, value: Any) -> float:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or not abs(value) < 1e9:  # NaN and infinity fail too
            self.wrong(key, "must be a number", value)
            return 1.0
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.content.get(key)
        if value is not None and not isinstance(value, bool):
            self.wrong(key, "must be true or false")
        return value is True

    def indices(self, key: str) -> Indices:
        try:
            return parse_indices(self.content.get(key))
        except ValueError as error:
            self.wrong(key, str(error))
            return {}

    def text(self, key: str) -> str | None:
        value = self.content.get(key)
        if value is not None and not isinstance(value, str):
            self.wrong(key, "must be a text")
            return None
        return value

    def names(self, key: str, *, pattern: bool) -> tuple[str, ...] | str:
        value = self.content.get(key)
        if value is None:
            return ()
        if isinstance(value, str) and pattern:
            return value if value == ALL_LINEAR or self._compiles(key, value) else ()
        if isinstance(value, list) and all(isinstance(v, str) and v for v in value):
            return tuple(value)
        self.wrong(key, "must be a list of names" + (" or a regular expression" * pattern))
        return ()

    def patterns(self, key: str) -> list[tuple[str, Any]]:
        value = self.content.get(key) or {}
        if not isinstance(value, dict):
            self.wrong(key, "must be a table of regular expressions")
            return []
        return [(k, v) for k, v in value.items() if self._compiles(key, k)]

    def layers(self) -> tuple[int, ...]:
        value = self.content.get("layers_to_transform")
        many = [] if value is None else value if isinstance(value, list) else [value]
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in many):
            self.wrong("layers_to_transform", "must be whole numbers")
            return ()
        return tuple(many)

    def layer_patterns(self) -> tuple[str, ...]:
        value = self.content.get("layers_pattern")
        many = [] if not value else value if isinstance(value, list) else [value]
        if not all(isinstance(p, str) and self._compiles("layers_pattern", p) for p in many):
            self.wrong("layers_pattern", "must be a name, or a list of names")
            return ()
        return tuple(many)

    def bias(self) -> str:
        value = self.content.get("bias", "none")
        if value not in ("none", "all", "lora_only"):
            self.wrong("bias", "must be none, all or lora_only")
            return "none"
        return str(value)

    def _compiles(self, key: str, pattern: str) -> bool:
        try:
            if len(pattern) > _MAX_PATTERN:
                raise re.error(f"is longer than {_MAX_PATTERN} characters")
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            self.wrong(key, f"is no regular expression: {error}", pattern)
            return False
        return True


def _named(names: tuple[str, ...] | str, path: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _by_pattern(patterns: Mapping[str, float], path: str, otherwise: float) -> float:
    """Return the value of the first pattern that a path ends in (PEFT's `get_pattern_key`)."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return otherwise
