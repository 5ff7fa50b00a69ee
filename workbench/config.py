"""Frozen settings, checked when made and never edited afterwards.

`ModelConfig` is what a checkpoint's `config.json` says, in the engine's words; `SchedulerConfig`
and `EngineConfig` are what a user chooses. `auto` values are resolved once, by `build`, into a new
object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from workbench.errors import ConfigError
from workbench.keywords import known_keywords

Activation = Literal["silu", "gelu", "gelu_tanh"]
Capacity = Literal["max_utilization", "guaranteed_no_evict"]
Preemption = Literal["recompute", "swap"]
Chunking = Literal["first_come", "equal_progress"]
_CHOICES: dict[str, Any] = {"capacity": Capacity, "preemption": Preemption, "chunking": Chunking}
_SWITCHES = "chunked_prefill", "prefix_reuse", "partial_reuse", "prefix_wait"


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context (`rope_scaling` of HF
    configs).

    kind: `linear` and `dynamic` (NTK) use `factor`; `llama3` also the two frequency factors; `yarn`
    the betas and, where given, the attention factor. `original_context` is the trained length.
    """

    kind: Literal["linear", "dynamic", "yarn", "llama3"]
    factor: float = 1.0
    original_context: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only model's shape: what layers, cache and scheduler need to know of it.

    Sizes count elements; `context` is the longest sequence in tokens; `windows[i]` is layer i's
    sliding window in tokens (None: full attention). num_experts: gated MLPs in place of one, of
    which each token takes `experts_per_token` (0: there is the one).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    norm_eps: float = 1e-6
    activation: Activation = "silu"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    windows: tuple[int | None, ...] = ()
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied_head: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "float32"

    def window(self, layer: int) -> int | None:
        """Return a layer's sliding window in tokens, or None where it sees everything."""
        return self.windows[layer] if self.windows else None


@known_keywords(ConfigError)
@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Budgets and order of the scheduler.

    max_batch_tokens: new tokens a step may run. max_sequences: sequences that may run at once.
    policy: a name in `workbench.scheduler.POLICIES`, or a key function of a sequence (smallest
    first). chunked_prefill: whether a prompt may be split over steps. prefix_reuse: whether a new
    sequence looks for its prompt's blocks in the cache. partial_reuse: whether it also copies the
    first tokens of a block that goes on differently. prefix_wait: whether it waits for a prefix of
    its prompt that a running sequence computes, or computes it as well.

    capacity: `max_utilization` starts a sequence when its tokens so far fit, and preempts when
    blocks run out; `guaranteed_no_evict` starts it only if it and all that run can grow to their
    full length. preemption: whether a preempted sequence's blocks are computed anew (`recompute`)
    or kept in the cache's host tier (`swap`). chunking: whether prompts get the step's tokens one
    after the other (`first_come`) or in equal parts (`equal_progress`). max_prefill_tokens: how
    many of them prompts may take in all (None: what decodes leave). dropping: what a running
    sequence's KV is reduced by, a name in `workbench.cache.dropping` or a function of its blocks.
    """

    max_batch_tokens: int = 2048
    max_sequences: int = 256
    policy: str | Callable[[Any], Any] = "fcfs"
    chunked_prefill: bool = True
    prefix_reuse: bool = True
    partial_reuse: bool = True
    prefix_wait: bool = True
    capacity: Capacity = "max_utilization"
    preemption: Preemption = "recompute"
    chunking: Chunking = "first_come"
    max_prefill_tokens: int | None = None
    dropping: str | Callable[[Any], Any] = "keep_all"

    def __post_init__(self) -> None:
        """Refuse budgets under which no step could run, and words that mean nothing."""
        for name in ("max_batch_tokens", "max_sequences"):
            require_positive(f"SchedulerConfig.{name}", getattr(self, name))
        if self.max_prefill_tokens is not None:
            require_positive("SchedulerConfig.max_prefill_tokens", self.max_prefill_tokens)
        for name in _SWITCHES:
            require_bool(f"SchedulerConfig.{name}", getattr(self, name))
        for name, choice in _CHOICES.items():
            require_choice(f"SchedulerConfig.{name}", getattr(self, name), get_args(choice))
        if self.max_sequences > self.max_batch_tokens:
            raise ConfigError(
                "SchedulerConfig.max_sequences",
                self.max_sequences,
                f"more than max_batch_tokens={self.max_batch_tokens}, so some could never decode",
                f"Set max_sequences to {self.max_batch_tokens} or less, or raise max_batch_tokens.",
            )

    def max_new_tokens(self, num_tokens: int) -> int:
        """Return how many tokens of a sequence of `num_tokens` one step may compute."""
        return min(num_tokens, self.max_batch_tokens) if self.chunked_prefill else num_tokens


@known_keywords(ConfigError)
@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything `build` needs to make an engine. `None` and `auto` are chosen from the machine.

    num_blocks x block_size is the cache's capacity in tokens. `cache_dtype`: what keys and values
    are kept in: "auto" (as the model), "fp8", "int8" or a float dtype. `host_cache_bytes` of host
    memory take in what is evicted or swapped out of it (0: none). `seed` fixes the draw of every
    request that names no seed of its own. `eviction`: which cached block goes next, a name in
    `workbench.cache.eviction_policy` or a function. `proposer` guesses tokens that are verified
    several at once, as `speculation` (a `SpeculationConfig`) says: "ngram", "suffix", "lookahead",
    a name under `adapters/<model>/`, a folder with a draft head or model, or a `Proposer`.
    `lora_rows`: rank rows on the device for LoRA adapters, planned beside the cache; an adapter
    takes as many as its rank (None: as many as are loaded). `lora_host_bytes` bounds their copies
    in host memory, `max_lora_rank` what is loaded at all. `cuda_graphs`, `tape` and
    `batch_invariant` are explained at `Runner`, `overlap` at `Engine`, the rest at
    `SchedulerConfig`.
    """

    model: str = "tinypy"
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    cuda_graphs: str | bool | Sequence[int] = "auto"
    tape: str | bool = "auto"
    overlap: str | bool = "auto"
    batch_invariant: bool = False
    block_size: int = 16
    num_blocks: int | None = None
    cache_dtype: str = "auto"
    host_cache_bytes: int = 0
    max_batch_tokens: int = 2048
    max_sequences: int = 256
    policy: str | Callable[[Any], Any] = "fcfs"
    chunked_prefill: bool = True
    prefix_reuse: bool = True
    partial_reuse: bool = True
    prefix_wait: bool = True
    capacity: Capacity = "max_utilization"
    preemption: Preemption = "recompute"
    chunking: Chunking = "first_come"
    max_prefill_tokens: int | None = None
    dropping: str | Callable[[Any], Any] = "keep_all"
    eviction: str | Callable[[Any], Any] = "lru"
    seed: int | None = None
    proposer: Any = None
    speculation: Any = None
    lora_rows: int | None = None
    lora_host_bytes: int | None = None
    max_lora_rank: int = 256

    def scheduler(self) -> SchedulerConfig:
        """Return the part of these settings that the scheduler owns, checked."""
        names = [field.name for field in fields(SchedulerConfig)]
        return SchedulerConfig(**{name: getattr(self, name) for name in names})


def require_positive(field: str, value: Any) -> None:
    """Raise `ConfigError` unless `value` is an int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(field, value, "must be a whole number of at least 1", "Give 1 or more.")


def require_bool(field: str, value: Any) -> None:
    """Raise `ConfigError` unless `value` is True or False: any text would count as True."""
    if not isinstance(value, bool):
        raise ConfigError(field, value, "is not a bool", "Use True or False.")


def require_choice(field: str, value: Any, known: Sequence[str]) -> None:
    """Raise `ConfigError` unless `value` is one of the known words."""
    if value not in known:
        raise ConfigError(field, value, "no such choice", f"Known: {', '.join(known)}.")
