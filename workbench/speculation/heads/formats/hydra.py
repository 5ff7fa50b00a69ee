"""Hydra as published: `hydra_lm_head` (as safetensors) and the keys of its `HydraConfig`.

Saved heads with a prefix layer state its shape as well; the authors' take it from the target.
"""

from __future__ import annotations

from typing import Any

import torch

from workbench.models import hf as read_hf
from workbench.speculation.heads.formats.found import Found
from workbench.speculation.heads.formats.shape import read_shape, write_shape
from workbench.speculation.heads.hydra import HydraHead

FILE = "hydra_lm_head.safetensors"
_ARCHS = ("mlp", "prefix-mlp")


def read(found: Found) -> HydraHead:
    """Return the head that the config states. Raises `ConfigError`.

    The prefix layer has the target's shape, unless the config states one (ours, when saved).
    """
    hf, target = found.config, found.target
    arch = hf.get("hydra_head_arch", "mlp")
    if arch not in _ARCHS:
        fix = f"Known: {', '.join(_ARCHS)}."
        raise found.refuse("hydra_head_arch", arch, "this kind of Hydra head is not read", fix)
    num_heads = read_hf.whole(hf, "hydra_num_heads", 4)
    num_layers = read_hf.whole(hf, "hydra_num_layers", 1)
    config = target.config
    found.require_width("hydra_lm_head.0.1.weight", 0, config.vocab_size, "vocabulary")
    found.require_width("hydra_lm_head.0.1.weight", 1, config.hidden_size, "hidden size")
    embedding = target.embedding.weight
    for name in HydraHead.copies:
        found.drop_copy(name, embedding, "embedding")
    prefix = None
    if arch == "prefix-mlp":
        stated = hf.get("prefix_layer_config")
        shape = write_shape(target.config) if stated is None else stated
        prefix = read_shape(shape, num_layers=1)
    head = HydraHead(
        target,
        num_heads=num_heads,
        num_layers=num_layers,
        grounded=hf.get("grounded_heads", True) is True,
        prefix=prefix,
        state_offset=read_hf.whole(hf, "hidden_state_offset", 0, least=0),
    )
    _drop_aliases(found, head)
    return head


def write(head: HydraHead, base: str) -> dict[str, Any]:
    """Return the config of a head; `base` names its target."""
    config: dict[str, Any] = {
        "hydra_num_heads": head.num_heads,
        "hydra_num_layers": head.num_layers,
        "hydra_head_arch": "mlp" if head.prefix_config is None else "prefix-mlp",
        "base_model_name_or_path": base,
        "grounded_heads": head.grounded,
        "hidden_state_offset": head.state_offset,
    }
    if head.prefix_config is not None:
        config["prefix_layer_config"] = write_shape(head.prefix_config)
    return config


def aliases(head: HydraHead) -> dict[str, str]:
    """Return {name: the name it repeats}: the blocks after the first are one module.

    Where heads are not grounded, so is the first.
    """
    first = 1 if head.grounded else 0
    return {
        f"hydra_mlp.{i}.{2 * j + 1}.linear.{kind}": f"hydra_mlp.{i}.{2 * first + 1}.linear.{kind}"
        for i in range(head.num_heads)
        for j in range(first + 1, head.num_layers)
        for kind in ("weight", "bias")
    }


def _drop_aliases(found: Found, head: HydraHead) -> None:
    for name, first in aliases(head).items():
        if name not in found.tensors or first not in found.tensors:
            continue
        if not torch.equal(found.read(name), found.read(first)):
            why = "Hydra's blocks after the first are one module"
            found.problems.append(f"tensor {name} differs from {first}, but {why}")
        del found.tensors[name], found.names[name]
