"""Which family reads which architecture: the names that checkpoints give in `config.json`.

Code that comes with a checkpoint is never run, so an architecture is either listed here or refused.
Own families need no registration: pass `load_model(..., families={**FAMILIES, "Mine": MyModel})`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from workbench.errors import ConfigError
from workbench.models.base import DecoderLM
from workbench.models.llama import LlamaForCausalLM
from workbench.models.mixtral import MixtralForCausalLM

Families = Mapping[str, type[DecoderLM]]

FAMILIES: Families = MappingProxyType(
    {
        name: family
        for family in (LlamaForCausalLM, MixtralForCausalLM)
        for name in family.architectures
    }
)


def find_family(hf: Mapping[str, Any], families: Families = FAMILIES) -> type[DecoderLM]:
    """Return the family of a `config.json`. Raises `ConfigError` that lists the known ones."""
    stated = hf.get("architectures") or []
    names = stated if isinstance(stated, list) else [stated]
    for name in names:
        if isinstance(name, str) and name in families:
            return families[name]
    problem = "no architecture that is known here"
    if "auto_map" in hf:
        problem += "; it needs code from the checkpoint, which is never run"
    known = f"Known: {', '.join(sorted(families))}."
    known += " A class of one's own goes into `load_model(…, families={**FAMILIES, name: class})`."
    raise ConfigError("config.json: architectures", stated, problem, known)
