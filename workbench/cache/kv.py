"""`KVCache`: the KV tensors, and the block manager that says what lies where in them.

Written only by the attention op (through `slot_mapping`) and by `run_transfers`; sized once. Use
`KVCache.for_model` for a model's cache.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.cache.blocks import BlockManager
from workbench.cache.host import HostTier
from workbench.cache.host_memory import HostMemory
from workbench.cache.stats import CacheStats
from workbench.config import ModelConfig
from workbench.describe import Described, human_bytes
from workbench.errors import ConfigError

if TYPE_CHECKING:
    from workbench.models.base import DecoderLM


class KVCache(Described):
    """Paged keys and values of all layers.

    `tensor` is [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim], keys then values;
    `layers[i]` is its view for layer i; `blocks` is the allocator.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        num_host_blocks: int = 0,
    ) -> None:
        """Allocate the tensors. `num_layers` may be 0: then there is only the bookkeeping.

        num_host_blocks: how many blocks the host tier holds; 0: there is none.
        """
        host = HostTier(num_host_blocks) if num_host_blocks else None
        self.blocks = BlockManager(num_blocks, block_size, host)
        shape = (num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim)
        self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        self.layers: list[Tensor] = list(self.tensor.unbind(0))
        self.host_memory = HostMemory(self.tensor, num_host_blocks) if host is not None else None

    @classmethod
    def for_model(
        cls, model: DecoderLM, num_blocks: int = 512, block_size: int = 16, host_bytes: int = 0
    ) -> KVCache:
        """Return a cache of `num_blocks` blocks for this model, on its device and in its dtype.

        host_bytes: host memory for what leaves the device (0: none); `ConfigError` if it holds no
        block.
        """
        parameter = next(model.parameters())
        return cls.for_config(
            model.config, num_blocks, block_size, parameter.dtype, parameter.device, host_bytes
        )

    @classmethod
    def for_config(
        cls,
        config: ModelConfig,
        num_blocks: int,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        host_bytes: int = 0,
    ) -> KVCache:
        """Return a cache for a model of this shape."""
        num_host_blocks = 0
        if host_bytes:
            num_host_blocks = size_for_memory(
                config, host_bytes, block_size, dtype, field="host_cache_bytes"
            )
        return cls(
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=dtype,
            device=device,
            num_host_blocks=num_host_blocks,
        )

    @staticmethod
    def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
        """Return how many bytes one block takes over all layers."""
        slot = config.num_kv_heads * config.head_dim * dtype.itemsize
        return 2 * config.num_layers * block_size * slot

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self.blocks.num_blocks

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.blocks.block_size

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return self.tensor.numel() * self.tensor.element_size()

    def run_transfers(self, copies: list[tuple[int, int]]) -> None:
        """Make every transfer that must precede a forward pass: those the host tier owes, and the
        plan's `copies`, which may begin with what was just restored."""
        if self.host_memory is not None and self.blocks.host is not None:
            self.blocks.host.carry_out(self.host_memory)
        self.copy_blocks(copies)

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copy the KV of each (source, destination) pair of blocks, in every layer and in order.

        In order matters where a source is the destination of an earlier pair (a fork of a fork).
        """
        together: dict[int, int] = {}  # {destination: source} that do not build on each other
        for source, destination in copies:
            if source in together:
                self._copy_at_once(together)
                together = {}
            together[destination] = source
        self._copy_at_once(together)

    def _copy_at_once(self, source_of: dict[int, int]) -> None:
        if not source_of:
            return
        pairs = torch.tensor(list(source_of.items()), device=self.tensor.device)
        destinations, sources = pairs.unbind(1)
        self.tensor[:, :, destinations] = self.tensor[:, :, sources]

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

    def close(self) -> None:
        """Give the tensors' memory back; the cache cannot be used afterwards."""
        self.tensor = self.tensor.new_empty(0)
        self.layers = []
        if self.host_memory is not None:
            self.host_memory.close()

    def describe(self) -> dict[str, Any]:
        """Return the size of the cache and how it is used now."""
        facts = {
            **self.blocks.describe(),
            "tokens": self.num_blocks * self.block_size,
            "memory": human_bytes(self.num_bytes),
            "dtype": str(self.tensor.dtype).removeprefix("torch."),
            "device": str(self.tensor.device),
        }
        if self.host_memory is not None and self.blocks.host is not None:
            facts |= self.blocks.host.describe()
            facts["host memory"] = human_bytes(self.host_memory.num_bytes)
        return facts


def size_for_memory(
    config: ModelConfig,
    num_bytes: int,
    block_size: int,
    dtype: torch.dtype,
    field: str = "num_blocks",
) -> int:
    """Return how many blocks fit into `num_bytes`; raise `ConfigError` if not even one does."""
    per_block = KVCache.bytes_per_block(config, block_size, dtype)
    if num_bytes < per_block:
        raise ConfigError(
            field,
            human_bytes(num_bytes),
            f"less memory than one block of {human_bytes(per_block)}",
            "Give it more memory, or use a smaller block_size.",
        )
    return num_bytes // per_block
