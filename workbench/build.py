"""`build(config)`: the one place that knows every part, and puts an engine together from settings.

What it does can be done by hand in five lines (notebook 01); it adds only the choice of `auto`
values, which `resolve` returns as a new, frozen config.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from workbench.cache import KVCache
from workbench.cache.kv import size_for_memory
from workbench.config import EngineConfig, ModelConfig, require_positive
from workbench.engine import Engine
from workbench.engine.checks import check_seed
from workbench.errors import ConfigError
from workbench.models import DecoderLM, load_model
from workbench.models.loader import resolve_device
from workbench.ops import get_backend
from workbench.run import Runner
from workbench.run.graphs import resolve_sizes
from workbench.sample import Sampler
from workbench.scheduler import Scheduler, get_policy

_CPU_CACHE_BYTES = 512 << 20
_GPU_MEMORY_SHARE = 0.85


def build(config: EngineConfig | None = None, *, model: DecoderLM | None = None) -> Engine:
    """Return an engine for these settings; `model` spares loading one that is already there.

    Raises `ConfigError` or `CheckpointError`, before the cache is allocated.
    """
    config = config or EngineConfig()
    scheduler_config = config.scheduler()
    check(config)
    if model is None:
        model = load_model(config.model, device=config.device, dtype=config.dtype)
    num_blocks = config.num_blocks or default_num_blocks(model, config)
    cache = KVCache.for_model(
        model,
        num_blocks,
        config.block_size,
        window_blocks=min(num_blocks, window_blocks(model.config, config)),
        host_bytes=config.host_cache_bytes,
    )
    runner = Runner(model, cache, backend=config.backend, cuda_graphs=config.cuda_graphs)
    scheduler = Scheduler(cache, scheduler_config)
    return Engine(
        model,
        cache,
        scheduler,
        runner,
        Sampler(),
        proposer=config.proposer,
        speculation=config.speculation,
        seed=config.seed,
    )


def check(config: EngineConfig) -> None:
    """Raise `ConfigError` for what can be seen to be wrong before anything is loaded."""
    check_seed(config.seed)
    get_policy(config.policy)
    device = resolve_device(config.device)
    if config.backend != "auto" or config.cuda_graphs != "auto":
        resolve_sizes(config.cuda_graphs, device, get_backend(config.backend, device))
    require_positive("block_size", config.block_size)
    if config.num_blocks is not None:
        require_positive("num_blocks", config.num_blocks)
    if config.host_cache_bytes != 0:
        require_positive("host_cache_bytes", config.host_cache_bytes)
    elif config.preemption == "swap":
        fix = "Give it some bytes of host memory, or use preemption='recompute'."
        raise ConfigError("host_cache_bytes", 0, "preemption='swap' needs a host tier", fix)


def resolve(config: EngineConfig, model: DecoderLM) -> EngineConfig:
    """Return the config with every `auto` and `None` replaced by what was chosen for this model."""
    parameter = next(model.parameters())
    return replace(
        config,
        device=str(parameter.device),
        dtype=str(parameter.dtype).removeprefix("torch."),
        backend=get_backend(config.backend, parameter.device).name,
        num_blocks=config.num_blocks or default_num_blocks(model, config),
    )


def default_num_blocks(model: DecoderLM, config: EngineConfig) -> int:
    """Return how many blocks the cache gets: a share of free GPU memory, or a fixed size on a CPU.

    Never more than all sequences at full context could use.
    """
    parameter = next(model.parameters())
    if parameter.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(parameter.device)
        budget = int(_GPU_MEMORY_SHARE * (free - activation_bytes(model.config, config)))
    else:
        budget = _CPU_CACHE_BYTES
    beside = window_blocks(model.config, config)
    fitting = size_for_memory(model.config, budget, config.block_size, parameter.dtype, beside)
    most = config.max_sequences * -(-model.config.context // config.block_size)
    return min(fitting, most)


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
    """Return a bound on a step's activations in bytes: the widest layer's, and the logits."""
    per_token = 4 * (3 * model.intermediate_size + 8 * model.hidden_size)
    logits = 4 * 4 * model.vocab_size * config.max_sequences
    return per_token * config.max_batch_tokens + logits
