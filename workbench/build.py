"""`build(config)`: the one place that knows every part, and puts an engine together from settings.

What it does can be done by hand in five lines (notebook 01); it adds only the choice of `auto`
values, which `resolve` returns as a new, frozen config.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from workbench.cache import KVCache, get_dropping, get_eviction
from workbench.cache.groups import kv_dtype
from workbench.config import EngineConfig, require_bool, require_positive
from workbench.engine import Engine
from workbench.engine.checks import check_seed
from workbench.engine.overlap import check_overlap
from workbench.errors import ConfigError
from workbench.lora import LoRAManager
from workbench.memory_plan import plan_memory
from workbench.models import DecoderLM, load_model
from workbench.models.loader import resolve_device
from workbench.ops import get_backend
from workbench.run import Runner
from workbench.run.graph_sizes import resolve_sizes
from workbench.run.tapes import resolve_tape
from workbench.sample import Sampler
from workbench.scheduler import Scheduler, get_policy
from workbench.speculation import get_proposer


def build(config: EngineConfig | None = None, *, model: DecoderLM | None = None) -> Engine:
    """Return an engine for these settings; `model` spares loading one that is already there.

    Raises `ConfigError` or `CheckpointError`, before the cache is allocated.
    """
    config = EngineConfig() if config is None else config
    if not isinstance(config, EngineConfig):
        fix = "Pass `EngineConfig(model=…, …)`; `LLM(model, …)` makes one by itself."
        raise ConfigError("config", config, "is not an EngineConfig", fix)
    if model is not None and not isinstance(model, DecoderLM):
        fix = "Pass `load_model(…)`, or a name as `EngineConfig(model=…)`."
        raise ConfigError("model", model, "is no model that was loaded", fix)
    scheduler_config = config.scheduler()
    check(config)
    if model is None:
        model = load_model(config.model, device=config.device, dtype=config.dtype)
    proposer = get_proposer(config.proposer, model, config.model)
    plan = plan_memory(model, replace(config, proposer=proposer))
    cache = KVCache.for_model(
        model,
        plan.num_blocks,
        config.block_size,
        dtype=config.cache_dtype,
        window_blocks=plan.window_blocks,
        host_bytes=config.host_cache_bytes,
    )
    cache.eviction = get_eviction(config.eviction)
    runner = Runner(
        model, cache, config.backend, config.cuda_graphs, config.tape, config.batch_invariant
    )
    scheduler = Scheduler(cache, scheduler_config)
    return Engine(
        model,
        cache,
        scheduler,
        runner,
        Sampler(),
        proposer=proposer,
        speculation=config.speculation,
        overlap=config.overlap,
        loras=LoRAManager(
            model,
            num_rows=config.lora_rows,
            host_bytes=config.lora_host_bytes,
            max_rank=config.max_lora_rank,
        ),
        seed=config.seed,
    )


def check(config: EngineConfig) -> None:
    """Raise `ConfigError` for what can be seen to be wrong before anything is loaded."""
    check_seed(config.seed)
    check_overlap(config.overlap)
    get_policy(config.policy)
    get_dropping(config.dropping)
    get_eviction(config.eviction)
    device = resolve_device(config.device)
    require_bool("batch_invariant", config.batch_invariant)
    choices = config.backend, config.cuda_graphs, config.tape, config.batch_invariant
    if choices != ("auto", "auto", "auto", False):
        backend = get_backend(config.backend, device, batch_invariant=config.batch_invariant)
        resolve_sizes(config.cuda_graphs, device, backend)
        resolve_tape(config.tape, device, backend)
    kv_dtype(config.cache_dtype, torch.float32)
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
        backend=get_backend(
            config.backend, parameter.device, batch_invariant=config.batch_invariant
        ).name,
        num_blocks=plan_memory(model, config).num_blocks,
    )
