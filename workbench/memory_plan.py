"""`MemoryPlan`: where every byte of a device goes, before any of it is taken.

`build` sizes the cache by it. Weights and cache are exact, a draft model's too; a step's
activations and logits are bounds. What is left is for CUDA graphs, the kernels' workspaces and the
allocator's rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import psutil
import torch

from workbench.cache import KVCache, groups_of
from workbench.cache.groups import kv_dtype
from workbench.cache.sizing import size_for_memory
from workbench.config import EngineConfig, ModelConfig, require_positive
from workbench.describe import Described, human_bytes
from workbench.errors import ConfigError
from workbench.lora.packing import Packer
from workbench.models import DecoderLM
from workbench.speculation import ProposerMemory, get_proposer

_CPU_CACHE_BYTES = 512 << 20
_CACHE_SHARE = 0.85  # of what is free: graphs and workspaces are not known beforehand
_OTHERS, _LEFT = "in use by others", "left for graphs and workspaces"


class Memory(NamedTuple):
    """A device's memory in bytes: all of it, and what nobody uses now."""

    capacity: int
    free: int


@dataclass(frozen=True, slots=True, repr=False)
class MemoryPlan(Described):
    """What each part takes, in bytes; `shares` add up to `capacity`, the device's memory.

    num_blocks and window_blocks (of a KV group with a window) are the cache's.
    """

    device: str
    capacity: int
    shares: dict[str, int]
    block_size: int
    num_blocks: int
    window_blocks: int

    @property
    def num_left(self) -> int:
        """Bytes that the plan gives to nothing; negative where it asks for more than there is."""
        return self.shares[_LEFT]

    def describe(self) -> dict[str, Any]:
        """Return each part as bytes and as a share of the device."""
        facts: dict[str, Any] = {
            name: f"{_signed(count)} ({count / self.capacity:.1%})"
            for name, count in self.shares.items()
        }
        facts["in all"] = f"{human_bytes(self.capacity)} on {self.device}"
        tokens = self.num_blocks * self.block_size
        facts["cache"] = f"{self.num_blocks} blocks of {self.block_size}: {tokens} tokens"
        return facts

    def __str__(self) -> str:
        """A line for each part."""
        facts = self.describe()
        width = max(map(len, facts))
        return "\n".join(f"{name:{width}}  {value}" for name, value in facts.items())


def plan_memory(model: DecoderLM, config: EngineConfig, memory: Memory | None = None) -> MemoryPlan:
    """Return the plan of an engine of these settings over a model that is already loaded.

    Without `config.num_blocks` the cache gets a share of the free memory, or a fixed size on a CPU,
    and never more than all sequences at full context could use. A proposer that is named is loaded,
    to know what it takes. memory: the device's, if not as it is then. Raises `ConfigError`, with
    the plan of the largest cache that fits, if one that was asked for does not, or if none does.
    """
    if not isinstance(model, DecoderLM):
        raise ConfigError("model", model, "is no model that was loaded", "Pass `load_model(…)`.")
    weight, draft = next(model.parameters()), _draft_memory(model, config)
    memory = memory or memory_of(weight.device)
    shape, size = model.config, config.block_size
    room = memory.free - _step_bytes(model, config, draft) - logit_bytes(shape, config)
    room -= lora_bytes(model, config)
    beside_block = 0 if draft is None else draft.block_bytes
    # What is asked for by number may also take the share that is else left over.
    budget = room if config.num_blocks else int(_CACHE_SHARE * room)
    if weight.device.type == "cpu" and not config.num_blocks:
        budget = min(budget, _CPU_CACHE_BYTES)
    kept = kv_dtype(config.cache_dtype, weight.dtype)
    if budget < KVCache.bytes_per_block(shape, size, kept) + beside_block:
        plan = _plan(model, config, memory, draft, 0, 0)
        fix = f"Lower max_batch_tokens, max_sequences or block_size. The plan without it:\n{plan}"
        problem = f"there is no room for a single block on {weight.device}"
        raise ConfigError("num_blocks", config.num_blocks, problem, fix)
    beside = window_blocks(shape, config)
    most = size_for_memory(shape, budget, size, kept, beside, extra=beside_block)
    whole = config.max_sequences * -(-shape.context // size)
    num_blocks = config.num_blocks or min(most, whole)
    if num_blocks > most:
        plan = _plan(model, config, memory, draft, most, beside)
        problem = f"the cache would take more than the {human_bytes(room)} that are left for it"
        fix = f"At most num_blocks={most} fit. The plan then:\n{plan}"
        raise ConfigError("num_blocks", num_blocks, problem, fix)
    return _plan(model, config, memory, draft, num_blocks, beside)


def _plan(
    model: DecoderLM,
    config: EngineConfig,
    memory: Memory,
    draft: ProposerMemory | None,
    num_blocks: int,
    beside: int,
) -> MemoryPlan:
    weight, weights = next(model.parameters()), _weight_bytes(model)
    kept = kv_dtype(config.cache_dtype, weight.dtype)
    beside = min(num_blocks, beside)
    drafting = {}
    if draft is not None:
        drafting = {
            f"{draft.name}: weights": draft.weight_bytes,
            f"{draft.name}: KV cache": num_blocks * draft.block_bytes,
        }
    others = memory.capacity - memory.free - weights - (draft.weight_bytes if draft else 0)
    shares = {
        _OTHERS: max(0, others),
        "weights": weights,
        **_cache_bytes(model.config, config, kept, num_blocks, beside),
        **drafting,
        **({"LoRA adapters": lora_bytes(model, config)} if config.lora_rows else {}),
        "activations of a step, at most": _step_bytes(model, config, draft),
        "logits and sampling, at most": logit_bytes(model.config, config),
    }
    shares[_LEFT] = memory.capacity - sum(shares.values())
    device = str(weight.device)
    return MemoryPlan(device, memory.capacity, shares, config.block_size, num_blocks, beside)


def memory_of(device: torch.device) -> Memory:
    """Return a device's memory as it is now: the GPU's, or the machine's for a CPU."""
    if device.type == "cuda":
        free, capacity = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Memory(capacity, free + kept)  # what torch keeps without using it is ours to use
    machine = psutil.virtual_memory()
    return Memory(machine.total, machine.available)


def window_blocks(model: ModelConfig, config: EngineConfig) -> int:
    """Return how many blocks layers with a window can use, beside others that see everything.

    As much as all sequences hold at once, and half as much again for prefixes that are kept.
    """
    windows = [window for window in model.windows if window is not None]
    if not windows:
        return 1
    size, longest = config.block_size, min(max(windows), model.context)
    running = config.max_sequences * (-(-longest // size) + 2)
    chunks = -(-config.max_batch_tokens // size) if config.chunked_prefill else 0
    whole = -(-model.context // size)  # of one sequence, which may come in one piece
    return max(whole, 3 * (running + chunks) // 2)


def activation_bytes(model: ModelConfig, config: EngineConfig) -> int:
    """Return a bound on a step's activations in bytes: the widest layer's."""
    per_token = 4 * (3 * model.intermediate_size + 8 * model.hidden_size)
    return per_token * config.max_batch_tokens


def _draft_memory(model: DecoderLM, config: EngineConfig) -> ProposerMemory | None:
    """Return what the proposer says that it takes; None where it says nothing."""
    proposer: Any = get_proposer(config.proposer, model, config.model)
    if not hasattr(proposer, "memory"):
        return None
    taken: ProposerMemory = proposer.memory(model, config.block_size)
    return taken


def _step_bytes(model: DecoderLM, config: EngineConfig, draft: ProposerMemory | None) -> int:
    """Return a bound on the activations of a pass: the target's, or a draft model's before it."""
    own = activation_bytes(model.config, config)
    if draft is None:
        return own
    return max(
        own, activation_bytes(draft.config, replace(config, max_batch_tokens=draft.pass_tokens))
    )


def logit_bytes(model: ModelConfig, config: EngineConfig) -> int:
    """Return a bound on what the logits of a step take, and on what sampling makes of them."""
    return 4 * 4 * model.vocab_size * config.max_sequences


def lora_bytes(model: DecoderLM, config: EngineConfig) -> int:
    """Return what the rank rows of adapters take in bytes, over all linear layers but the head.

    0 where no number is set: rows are then made as adapters come, from what the plan leaves.
    """
    if config.lora_rows is None:
        return 0
    require_positive("lora_rows", config.lora_rows)
    return config.lora_rows * Packer(model).row_bytes()


def _weight_bytes(model: DecoderLM) -> int:
    """Return what parameters and buffers take; tied ones count once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    return sum(storages.values())


def _cache_bytes(
    model: ModelConfig, config: EngineConfig, dtype: torch.dtype, num_blocks: int, beside: int
) -> dict[str, int]:
    """Return what each KV group's tensor takes."""
    taken: dict[str, int] = {}
    for place, group in enumerate(groups_of(model)):
        count = beside if place and group.window is not None else num_blocks
        name = f"KV cache, {group.name}"
        taken[name] = taken.get(name, 0) + count * group.bytes_per_block(config.block_size, dtype)
    return taken


def _signed(count: int) -> str:
    return f"-{human_bytes(-count)}" if count < 0 else human_bytes(count)
