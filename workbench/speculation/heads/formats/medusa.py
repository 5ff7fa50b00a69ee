"""Medusa as published: `medusa_lm_head.safetensors`, or `medusa_head.…` in a whole model's files.

Beside the authors' keys, `tree_paths` may state the tree that a head was measured for.
"""

from __future__ import annotations

from typing import Any

import torch

from workbench.models import hf as read_hf
from workbench.speculation.heads.formats.found import Found
from workbench.speculation.heads.medusa import MedusaHead
from workbench.speculation.heads.tree import Paths, static_tree

FILE = "medusa_lm_head.safetensors"


def read(found: Found) -> MedusaHead:
    """Return the head that the config and names state. Raises `ConfigError`.

    Where more heads are stored than the config says, they are used: published configs say 2 of 5.
    """
    hf, prefix = found.config, "medusa_head."
    if any(name.startswith(prefix) for name in found.tensors):  # Medusa-2: the model is there too
        found.keep_only(prefix)
        found.rename(prefix, "")
    stated = num_heads = read_hf.whole(hf, "medusa_num_heads", 5)
    while f"{num_heads}.0.linear.weight" in found.tensors:
        num_heads += 1
    if num_heads > stated:
        found.notes.append(f"{num_heads} heads are stored, config.json says {stated}")
    num_layers = read_hf.whole(hf, "medusa_num_layers", 1)
    version = str(hf.get("version", "1"))
    if version not in ("1", "2"):
        raise found.refuse("version", version, "no such version of Medusa's heads", "Known: 1, 2.")
    config = found.target.config
    found.require_width("0.0.linear.weight", 1, config.hidden_size, "hidden size")
    found.require_width(f"0.{num_layers}.weight", 0, config.vocab_size, "vocabulary")
    return MedusaHead(
        found.target,
        num_heads=num_heads,
        num_layers=num_layers,
        shared_blocks=_drop_aliases(found, num_heads, num_layers),
        own_matrix=version == "1",
        paths=_paths(hf.get("tree_paths")),
    )


def write(head: MedusaHead, base: str) -> dict[str, Any]:
    """Return the config of a head; `base` names its target."""
    config: dict[str, Any] = {
        "medusa_num_heads": head.num_heads,
        "medusa_num_layers": head.num_layers,
        "base_model_name_or_path": base,
        "version": "1" if len(head.heads) else "2",
    }
    return config | ({} if head.paths is None else {"tree_paths": [list(p) for p in head.paths]})


def aliases(head: MedusaHead) -> dict[str, str]:
    """Return {name: the name it repeats} of the blocks that are one module."""
    if not head.shared_blocks:
        return {}
    return _aliases(head.num_heads, head.num_layers)


def _aliases(num_heads: int, num_layers: int) -> dict[str, str]:
    return {
        f"{i}.{j}.linear.{kind}": f"{i}.0.linear.{kind}"
        for i in range(num_heads)
        for j in range(1, num_layers)
        for kind in ("weight", "bias")
    }


def _drop_aliases(found: Found, num_heads: int, num_layers: int) -> bool:
    """Whether a head's blocks are one module; if so, set its repetitions aside.

    They are if all repeat the first, or if none is stored (safetensors' `save_model` keeps one).
    """
    repeated = _aliases(num_heads, num_layers)
    stored = {name: first for name, first in repeated.items() if name in found.tensors}
    if len(stored) not in (0, len(repeated)):
        return False  # some are missing: matching will name them
    if any(
        first not in found.tensors or not torch.equal(found.read(name), found.read(first))
        for name, first in stored.items()
    ):
        return False
    for name in stored:
        del found.tensors[name], found.names[name]
    return True


def _paths(stated: Any) -> Paths | None:
    if stated is None:
        return None
    paths = tuple(tuple(int(rank) for rank in path) for path in stated)
    static_tree(paths)  # refuses what is no tree
    return paths
