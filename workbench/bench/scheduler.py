"""`workbench bench scheduler`: what a step costs beside the model, by number of running sequences.

The real engine, scheduler and block manager run; runner and sampler are stand-ins that cost
nothing, so the time left is planning, bookkeeping and output. The bound is 50 µs + 4 µs per
sequence.
"""

from __future__ import annotations

import argparse

from workbench.bench.idle import idle_engine
from workbench.bench.measure import Samples
from workbench.sampling_params import SamplingParams

SIZES = (1, 64, 256, 1024)


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
