"""The shapes and seeded workloads that every GPU figure is measured on, and what a peer reached.

Prompts are lists of token ids, all requests arrive at once and run greedily to a fixed length. One
generator draws them all in the order of `WORKLOADS`, so each name stands for the same ids always.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from workbench.bench.workloads import Job
from workbench.config import ModelConfig
from workbench.errors import ConfigError

SEED = 20261123
_LOW_ID, _HIGH_ID = 100, 100_000
_COMMON = ModelConfig(
    "LlamaForCausalLM",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    context=131_072,
    rope_theta=500_000.0,
    dtype="bfloat16",
)

SHAPES: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "llama-8b": _COMMON,
        "llama-1b": replace(
            _COMMON, hidden_size=2048, intermediate_size=8192, num_layers=16, head_dim=64
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Workload:
    """counted: which tokens the rate is of, `out` or `in`. lengths, outputs: draw a job's sizes."""

    description: str
    counted: str
    count: int
    lengths: Callable[[random.Random], int]
    outputs: Callable[[random.Random], int]


def _always(number: int) -> Callable[[random.Random], int]:
    return lambda _: number


WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        name: Workload(description, counted, count, lengths, outputs)
        for name, description, counted, count, lengths, outputs in (
            ("decode_b1", "1 x 128 in, 257 out", "out", 1, _always(128), _always(257)),
            ("decode_b32", "32 x 128 in, 257 out", "out", 32, _always(128), _always(257)),
            ("decode_b256", "256 x 128 in, 257 out", "out", 256, _always(128), _always(257)),
            ("prefill_16x2048", "16 x 2048 in, 1 out", "in", 16, _always(2048), _always(1)),
            ("prefill_1x32768", "1 x 32768 in, 1 out", "in", 1, _always(32_768), _always(1)),
            ("long_b8_16k", "8 x 16384 in, 129 out", "out", 8, _always(16_384), _always(129)),
            (
                "mixed_512",
                "512 x 32-1023 in, 32-255 out",
                "out",
                512,
                lambda r: r.randrange(32, 1024),
                lambda r: r.randrange(32, 256),
            ),
        )
    }
)

# vLLM 0.25.1, `LLM.generate`, bfloat16, CUDA graphs and torch.compile on, one process; tokens/s of
# the counted kind, by the GPU's name and shape. Measured 2026-11-23 with torch 2.11 (CUDA 13.0).
PEER: Mapping[tuple[str, str], Mapping[str, float]] = MappingProxyType(
    {
        ("NVIDIA H200", "llama-8b"): {
            "decode_b1": 195.4,
            "decode_b32": 5328.0,
            "decode_b256": 17_498.0,
            "prefill_16x2048": 41_700.0,
            "prefill_1x32768": 27_000.0,
            "long_b8_16k": 8 * 129 / 5.14,
            "mixed_512": 6813.0,
        }
    }
)


def get_shape(name: str) -> ModelConfig:
    """Return the shape of a name; raise `ConfigError` if there is none."""
    if name not in SHAPES:
        known = f"Known: {', '.join(SHAPES)}."
        raise ConfigError("--shape", name, "no such shape", known)
    return SHAPES[name]


def make_jobs(names: list[str]) -> dict[str, list[Job]]:
    """Return the jobs of these workloads; raise `ConfigError` for a name that is none."""
    for name in names:
        if name not in WORKLOADS:
            known = f"Known: {', '.join(WORKLOADS)}."
            raise ConfigError("workload", name, "no such workload", known)
    source = random.Random(SEED)
    made = {name: _jobs(workload, source) for name, workload in WORKLOADS.items()}
    return {name: made[name] for name in names}


def _jobs(workload: Workload, source: random.Random) -> list[Job]:
    jobs = []
    for _ in range(workload.count):
        length = workload.lengths(source)
        prompt = [source.randrange(_LOW_ID, _HIGH_ID) for _ in range(length)]
        jobs.append(Job(prompt, workload.outputs(source)))
    return jobs


@dataclass(frozen=True, slots=True)
class Work:
    """The least that some jobs cost: bytes to read while decoding, and FLOPs of either kind."""

    decode_bytes: int
    decode_flops: int
    prefill_flops: int

    @classmethod
    def of(cls, jobs: list[Job], config: ModelConfig, max_sequences: int) -> Work:
        """Count it: weights once a decode step, a context once a token, every product.

        There are at least as many decode steps as the longest output has tokens after its first,
        and as all tokens over `max_sequences`.
        """
        item, layers = 2, config.num_layers
        kv = 2 * layers * config.num_kv_heads * config.head_dim * item
        heads = config.num_heads * config.head_dim
        layer = config.hidden_size * (2 * heads + 2 * config.num_kv_heads * config.head_dim)
        layer += 3 * config.hidden_size * config.intermediate_size
        head = config.hidden_size * config.vocab_size
        new = [job.num_output - 1 for job in jobs]
        lens = [len(job.prompt) for job in jobs]
        steps = max(max(new), -(-sum(new) // max_sequences))
        seen = sum(n * p + n * (n + 1) // 2 for n, p in zip(new, lens, strict=True))
        body = 2 * layers * layer
        return cls(
            decode_bytes=steps * item * (layers * layer + head) + seen * kv,
            decode_flops=sum(new) * (body + 2 * head) + 4 * seen * heads * layers,
            prefill_flops=sum(lens) * body
            + len(jobs) * 2 * head
            + 2 * layers * heads * sum(p * p for p in lens),
        )
