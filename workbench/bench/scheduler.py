"""`workbench bench scheduler`: what a step costs beside the model, by number of running sequences.

The real engine, scheduler and block manager run; runner and sampler are stand-ins that cost
nothing, so the time left is planning, bookkeeping and output. The bound is 50 µs + 4 µs per
sequence.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any, cast

import torch

from workbench.batch import StepPlan
from workbench.bench.measure import Samples
from workbench.cache import KVCache
from workbench.config import ModelConfig, SchedulerConfig
from workbench.engine import Engine
from workbench.request import Sequence
from workbench.results import ForwardOutput, SampledTokens
from workbench.sampling_params import SamplingParams
from workbench.scheduler import Scheduler

SIZES = (1, 64, 256, 1024)
_NOTHING = ForwardOutput(torch.empty(0))


class NoRunner:
    """Stands where the runner is and computes nothing."""

    device = torch.device("cpu")
    captured: tuple[str, ...] = ()
    preparations = 0
    backend = SimpleNamespace(name="none")
    draw = None

    def __init__(self, model: Any, cache: KVCache) -> None:
        self.model, self.cache = model, cache

    def run(self, plan: StepPlan) -> ForwardOutput:
        """Return no logits to speak of."""
        return _NOTHING

    def close(self) -> None:
        """Nothing to close."""


class ConstantSampler:
    """Stands where the sampler is and always chooses token 7."""

    def __call__(self, logits: torch.Tensor, sequences: list[Sequence]) -> SampledTokens:
        """Return token 7 for every row."""
        return SampledTokens([7] * len(sequences))


def idle_engine(num_sequences: int, num_tokens: int) -> Engine:
    """Return an engine with room for these sequences of `num_tokens`, whose model is free."""
    config = ModelConfig("none", 128, 1, 1, 0, 1, 1, 1, context=num_tokens + 1)
    model = SimpleNamespace(
        config=config,
        tokenizer=None,
        rope_scope=lambda _: None,
        parameters=list,
        device=torch.device("cpu"),
    )
    blocks = num_sequences * (num_tokens // 16 + 2)
    cache = KVCache.for_config(config, blocks)
    budgets = SchedulerConfig(
        max_batch_tokens=max(2048, num_sequences), max_sequences=num_sequences
    )
    scheduler = Scheduler(cache, budgets)
    parts: tuple[Any, ...] = (model, cache, scheduler, NoRunner(model, cache), ConstantSampler())
    return Engine(*cast("tuple[Any, Any, Any, Any, Any]", parts))


def step_times(num_sequences: int, steps: int, prompt: int = 64) -> Samples:
    """Return the wall time of decode steps with this many running sequences."""
    engine = idle_engine(num_sequences, prompt + steps + 64)
    params = SamplingParams(max_tokens=steps + 32, temperature=0, ignore_eos=True)
    for i in range(num_sequences):
        engine.add([i % 100 + 1] * prompt, params)
    while any(r.num_output_tokens == 0 for r in engine.requests.values()):
        engine.step()
    samples = Samples()
    for _ in range(steps):
        with samples.measure():
            engine.step()
    return samples


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit code 1 if a size is over its bound."""
    parser = argparse.ArgumentParser(prog="workbench bench scheduler", description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args(argv)
    print(f"{'sequences':>9} {'median µs':>10} {'p10':>8} {'p90':>8} {'bound µs':>9} {'share':>6}")
    worst = 0.0
    for size in SIZES:
        samples = step_times(size, arguments.steps)
        low, high = samples.spread
        bound = 50 + 4 * size
        share = 1e6 * samples.median / bound
        worst = max(worst, share)
        print(
            f"{size:>9} {1e6 * samples.median:>10.0f} {1e6 * low:>8.0f} {1e6 * high:>8.0f} "
            f"{bound:>9} {share:>6.0%}"
        )
    return 0 if worst <= 1 else 1
