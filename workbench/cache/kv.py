"""`KVCache`: the KV tensors, and the block manager that says what lies where in them.

Written only by the attention op (through `slot_mapping`) and by `run_transfers`; sized once, or
anew by `resizing`. Use `KVCache.for_model` for a model's cache.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from workbench.cache.blocks import BlockManager
from workbench.cache.copies import copy_blocks, move_slots
from workbench.cache.eviction_policy import EvictionPolicy
from workbench.cache.groups import KVGroup, group_layers, groups_of, kv_dtype
from workbench.cache.host import HostTier
from workbench.cache.host_memory import HostMemory
from workbench.cache.joint import JointBlocks
from workbench.cache.sizing import require_host_possible, size_for_memory
from workbench.cache.stats import CacheCounters, CacheStats
from workbench.config import ModelConfig
from workbench.describe import Described, human_bytes
from workbench.errors import ConfigError
from workbench.interrupts import shielded
from workbench.kernels.quantised_kv import QUANTISED, scale_shape
from workbench.keywords import known_arguments
from workbench.models.base import DecoderLM


class KVCache(Described):
    """Paged keys and values of all layers, in one tensor for each KV group.

    `groups` are the model's KV groups and `tensors` theirs, each [num_layers, 2, num_blocks,
    block_size, num_kv_heads, head_dim], keys then values; `layers[i]` is layer i's view of its
    group's; `blocks` is the allocator. In 8 bits (`kernels.quantised_kv`) each tensor has `scales`
    [num_layers, 2, num_blocks, num_kv_heads, block_size] float32, and `layer_scales` are the
    layers'; else the one is empty and the other None. `companions`: other models' in these blocks.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int,
        block_size: int = 16,
        windows: tuple[int | None, ...] = (),
        window_blocks: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        num_host_blocks: int = 0,
    ) -> None:
        """Allocate the tensors. `num_layers` may be 0: then there is only the bookkeeping.

        windows: each layer's, where there are any. window_blocks: blocks of a group with a window
        beside one without (None: as many). num_host_blocks: how many blocks the host tier holds (0:
        there is none); `ConfigError` if there are windows or several groups.
        """
        shape = num_kv_heads, head_dim
        kinds = [(window, *shape) for window in windows or (None,) * num_layers]
        self.groups = group_layers(kinds) if kinds else (KVGroup((), None, *shape),)
        host = None
        if num_host_blocks:
            require_host_possible(self.groups, "num_host_blocks", num_host_blocks)
            host = HostTier(num_host_blocks)
        counts: list[int] = []
        counters = CacheCounters()
        managers = []
        for place, group in enumerate(self.groups):
            beside = place > 0 and group.window is not None
            number = window_blocks if beside and window_blocks is not None else num_blocks
            managers.append(
                BlockManager(
                    number,
                    block_size,
                    window=group.window,
                    host=host,
                    ref_counts=counts,
                    counters=counters,
                )
            )
        self.blocks = managers[0] if len(managers) == 1 else JointBlocks(managers)
        self.companions: list[KVCache] = []
        self.allocate(dtype, device)
        device_tensors = [*self.tensors, *self.scales]
        self.host_memory = HostMemory(device_tensors, num_host_blocks) if host is not None else None

    def allocate(self, dtype: torch.dtype, device: torch.device | str) -> None:
        """Make the tensors, for as many blocks as the managers have; see `cache.resizing`."""
        self.tensors, self.scales = [], []
        for group, manager in zip(self.groups, self.blocks.groups, strict=True):
            slot = group.num_kv_heads, group.head_dim
            shape = len(group.layers), 2, manager.num_blocks, self.block_size, *slot
            self.tensors.append(torch.zeros(shape, dtype=dtype, device=device))
            if dtype in QUANTISED:
                self.scales.append(torch.ones(scale_shape(self.tensors[-1].shape), device=device))
        self.layers = self._layer_views(self.tensors)
        self.layer_scales = self._layer_views(self.scales) if self.scales else None
        for companion in self.companions:
            companion.allocate(companion.tensors[0].dtype, device)

    def _layer_views(self, tensors: list[Tensor]) -> list[Tensor]:
        views = {
            layer: tensor[place]
            for group, tensor in zip(self.groups, tensors, strict=True)
            for place, layer in enumerate(group.layers)
        }
        return [views[layer] for layer in range(len(views))]

    @classmethod
    @known_arguments(ConfigError)
    def for_model(
        cls,
        model: DecoderLM,
        num_blocks: int = 512,
        block_size: int = 16,
        *,
        dtype: torch.dtype | str | None = None,
        window_blocks: int | None = None,
        host_bytes: int = 0,
    ) -> KVCache:
        """Return a cache of `num_blocks` blocks for this model, on its device.

        dtype: that of keys and values, or "fp8" or "int8" (None: the model's); see `kv_dtype`.
        host_bytes: host memory for what leaves the device (0: none); `ConfigError` if it holds no
        block, or if the model has windows or several KV groups.
        """
        if not isinstance(model, DecoderLM):
            raise ConfigError("model", model, "is no model", "Pass `load_model(…)`.")
        weight = next(model.parameters())
        return cls.for_config(
            model.config,
            num_blocks,
            block_size,
            weight.dtype if dtype is None else kv_dtype(dtype, weight.dtype),
            weight.device,
            window_blocks=window_blocks,
            host_bytes=host_bytes,
        )

    @classmethod
    def for_config(
        cls,
        config: ModelConfig,
        num_blocks: int,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        window_blocks: int | None = None,
        host_bytes: int = 0,
    ) -> KVCache:
        """Return a cache for a model of this shape."""
        num_host_blocks = 0
        if host_bytes:
            field = "host_cache_bytes"
            require_host_possible(groups_of(config), field, host_bytes)
            num_host_blocks = size_for_memory(config, host_bytes, block_size, dtype, field=field)
        return cls(
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            num_blocks=num_blocks,
            block_size=block_size,
            windows=config.windows,
            window_blocks=window_blocks,
            dtype=dtype,
            device=device,
            num_host_blocks=num_host_blocks,
        )

    @staticmethod
    def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
        """Return how many bytes one block takes over all layers: one of each group's."""
        return sum(group.bytes_per_block(block_size, dtype) for group in groups_of(config))

    @property
    def tensor(self) -> Tensor:
        """The only group's tensor; where there are several, ask for `tensors`."""
        (tensor,) = self.tensors
        return tensor

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self.blocks.num_blocks

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.blocks.block_size

    @property
    def eviction(self) -> EvictionPolicy:
        """Which cached block goes next; replaceable between steps."""
        return self.blocks.groups[0].pool.eviction.policy

    @eviction.setter
    def eviction(self, policy: EvictionPolicy) -> None:
        for group in self.blocks.groups:
            group.pool.eviction.policy = policy

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in (*self.tensors, *self.scales))

    def run_transfers(self, copies: list[tuple[int, int]]) -> None:
        """Make every transfer that must precede a forward pass: those the host tier owes, and the
        plan's `copies`, which may begin with what was just restored."""
        if self.host_memory is not None and self.blocks.host is not None:
            self.blocks.host.carry_out(self.host_memory, self.blocks.bus, self.blocks.step)
        self.copy_blocks(copies)

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copy the KV of each (source, destination) pair of blocks, in every layer and in order."""
        for manager, tensors in self._by_group() if copies else ():
            ids = manager.pool.ids
            places = [(ids.index(a), ids.index(b)) for a, b in copies if a in ids]
            for tensor in tensors:
                copy_blocks(tensor, places)
        for companion in self.companions:
            companion.copy_blocks(copies)

    def settle(self) -> None:
        """Make every transfer that is owed now, between two steps."""
        self.run_transfers(self.blocks.pending_copies)
        with shielded():
            self.blocks.finish_copies()

    def move_tokens(self, moves: list[tuple[int, int, int]]) -> None:
        """Copy the KV of tokens within their sequences, in every layer and all at once.

        moves: (sequence id, position, position it goes to); all are read before one is written.
        """
        for manager, tensors in self._by_group() if moves else ():
            tables, size, first = manager.tables, manager.block_size, manager.pool.ids.start
            slots = [
                (tables[i].slot(source, size, first), tables[i].slot(destination, size, first))
                for i, source, destination in moves
            ]
            for tensor in tensors:
                move_slots(tensor, slots, size)

    def _by_group(self) -> list[tuple[BlockManager, list[Tensor]]]:
        """Return each group's allocator, with its tensor, and its scales where there are any."""
        columns = (self.tensors, self.scales) if self.scales else (self.tensors,)
        return [
            (manager, list(tensors))
            for manager, *tensors in zip(self.blocks.groups, *columns, strict=True)
        ]

    def stats(self) -> CacheStats:
        """Return what the cache has done since it was made."""
        host = self.blocks.host
        return CacheStats(
            **asdict(self.blocks.counters),
            offloads=host.num_offloads if host is not None else 0,
            restores=host.num_restores if host is not None else 0,
        )

    def check(self) -> None:
        """Raise `AssertionError` unless the block structure is whole; see `BlockManager.check`."""
        self.blocks.check()

    def release(self) -> None:
        """Give the tensors' memory back."""
        self.tensors = [tensor.new_empty(0) for tensor in self.tensors]
        self.layers, self.scales, self.layer_scales = [], [], None
        if self.host_memory is not None:
            self.host_memory.follow(self.tensors)
        for companion in self.companions:
            companion.release()

    def close(self) -> None:
        """Give the memory back; the cache cannot be used afterwards."""
        self.release()
        if self.host_memory is not None:
            self.host_memory.close()

    def describe(self) -> dict[str, Any]:
        """Return the size of the cache and how it is used now."""
        first = self.blocks.groups[0]
        facts = {
            **self.blocks.describe(),
            "tokens": first.num_blocks * self.block_size,
            "memory": human_bytes(self.num_bytes),
            "dtype": str(self.tensors[0].dtype).removeprefix("torch."),
            "device": str(self.tensors[0].device),
        }
        if self.companions:
            facts["beside it"] = human_bytes(sum(one.num_bytes for one in self.companions))
        if self.host_memory is not None and self.blocks.host is not None:
            facts |= self.blocks.host.describe()
            facts["host memory"] = human_bytes(self.host_memory.num_bytes)
        return facts
