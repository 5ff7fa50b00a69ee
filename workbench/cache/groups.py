"""KV groups: which layers keep their KV in one tensor, because they are alike and look equally far.

Most models have one. A model of local and global layers has two, and its local ones then hold no
more than their window. `KVCache` makes a tensor and a block manager for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workbench.config import ModelConfig
from workbench.errors import ConfigError
from workbench.kernels.quantised_kv import FP8, QUANTISED


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers of one window and one shape of keys: `num_kv_heads` heads of size `head_dim`.

    window: how many tokens a token sees in these layers, itself included (None: all before it).
    """

    layers: tuple[int, ...]
    window: int | None
    num_kv_heads: int
    head_dim: int

    @property
    def name(self) -> str:
        """What the group is called where it is shown."""
        return "full" if self.window is None else f"window of {self.window}"

    def bytes_per_block(self, block_size: int, dtype: torch.dtype) -> int:
        """Return how many bytes a block takes over all of the group's layers, scales included."""
        scale = torch.float32.itemsize if dtype in QUANTISED else 0
        slot = self.num_kv_heads * (self.head_dim * dtype.itemsize + scale)
        return 2 * len(self.layers) * block_size * slot


def kv_dtype(name: torch.dtype | str, model_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of keys and values; `ConfigError` for one that no cache has.

    "auto" is the model's; "fp8" (e4m3) and "int8" keep a byte an element, and a scale a head.
    """
    known: dict[str, torch.dtype] = {"auto": model_dtype, "fp8": FP8}
    floats = (torch.float32, torch.float16, torch.bfloat16)
    known |= {str(dtype).removeprefix("torch."): dtype for dtype in (*floats, *QUANTISED)}
    wanted = str(name).removeprefix("torch.")
    if wanted not in known:
        raise ConfigError("cache_dtype", name, "no such dtype", f"Known: {', '.join(known)}.")
    return known[wanted]


def groups_of(config: ModelConfig) -> tuple[KVGroup, ...]:
    """Return a model's KV groups; see `group_layers`."""
    shape = config.num_kv_heads, config.head_dim
    layers = [(config.window(layer), *shape) for layer in range(config.num_layers)]
    return group_layers(layers or [(None, *shape)])


def group_layers(layers: Sequence[tuple[int | None, int, int]]) -> tuple[KVGroup, ...]:
    """Return the groups of layers given as (window, num_kv_heads, head_dim), in order of layer.

    A group without a window comes first: its tables hold whole sequences.
    """
    found: dict[tuple[int | None, int, int], list[int]] = {}
    for layer, kind in enumerate(layers):
        found.setdefault(kind, []).append(layer)
    groups = [KVGroup(tuple(members), *kind) for kind, members in found.items()]
    return tuple(sorted(groups, key=lambda group: (group.window is not None, group.layers)))
