"""The search for a kernel's best configuration: every candidate is held to the reference first.

Candidates are compiled ahead in threads, tried in a seeded random order until the time is up (the
default first), and the best few are timed again, longer. Called by `workbench bench kernels`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from workbench.kernels.accuracy import Accuracy, accuracy
from workbench.kernels.launch import INTERPRETED, Config, Plan
from workbench.kernels.spec import Inputs, KernelSpec

Timer = Callable[[Sequence[Plan], float], float]
"""Median microseconds of a call, of plans to rotate over, within about so many seconds."""

_FINALISTS = 4


@dataclass(slots=True)
class Found:
    """What a search came to. refused: configurations that did not compile, or were wrong."""

    config: Config
    accuracy: Accuracy
    default_us: float
    tried: int
    candidates: int
    refused: dict[str, str] = field(default_factory=dict)


def tune(
    spec: KernelSpec,
    dtype: torch.dtype,
    rotation: Sequence[Inputs],
    timer: Timer,
    *,
    seconds: float,
    seed: int = 0,
    threads: int = 8,
) -> Found:
    """Search a spec's space on these inputs (the first is what candidates are checked on)."""
    deadline = time.perf_counter() + seconds
    inputs = rotation[0]
    expected = spec.reference(**inputs)
    default, *others = spec.configs(inputs)
    random.Random(seed).shuffle(others)
    times: list[tuple[float, Config, Accuracy]] = []
    refused: dict[str, str] = {}
    tried = 0
    for config in _compiled_ahead(spec, inputs, [default, *others], threads):
        if times and time.perf_counter() > deadline:
            break
        tried += 1
        plans = [spec.plan(**each, config=config) for each in rotation]
        outcome = _verified(spec, dtype, plans[0], expected)
        if isinstance(outcome, str):
            refused[str(dict(config))] = outcome
            if config == default:
                raise AssertionError(f"{spec.name}: the default configuration {outcome}")
        else:
            times.append((timer(plans, 0.02), config, outcome))
    default_us = times[0][0]
    times.sort(key=lambda entry: entry[0])
    finals = [
        (timer([spec.plan(**each, config=config) for each in rotation], 0.1), config, checked)
        for _, config, checked in times[:_FINALISTS]
    ]
    _, best, checked = min(finals, key=lambda entry: entry[0])
    return Found(best, checked, default_us, tried, 1 + len(others), refused)


def _verified(spec: KernelSpec, dtype: torch.dtype, plan: Plan, expected: object) -> Accuracy | str:
    """Run a plan; return how near it came, or why it is refused."""
    try:
        outputs = plan.run()
    except (OutOfResources, CompilationError, PTXASError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:120]}"
    except RuntimeError as error:  # the compiler's own failures have no class
        if "PassManager" not in str(error):
            error.add_note(f"{spec.name} with {dict(plan.launches[0].config)}")
            raise
        return "the compiler failed"
    found = accuracy(spec, dtype, outputs, expected)
    return found if found.ok else f"is wrong by {found.max_err:.2e}, {found.share:.1f}x tolerance"


def _compiled_ahead(
    spec: KernelSpec, inputs: Inputs, configs: Sequence[Config], threads: int
) -> Iterator[Config]:
    """Yield the configurations, each compiled by then; failures show when they are run."""
    if INTERPRETED:
        yield from configs
        return

    def compile_one(config: Config) -> None:
        for launch in spec.plan(**inputs, config=config).launches:
            try:
                launch.kernel.warmup(**launch.keywords, grid=launch.grid)
            except (OutOfResources, CompilationError, PTXASError, RuntimeError):
                return

    with ThreadPoolExecutor(threads) as pool:
        ahead = 2 * threads
        pending = [pool.submit(compile_one, config) for config in configs[:ahead]]
        try:
            for place, config in enumerate(configs):
                pending[place].result()
                if place + ahead < len(configs):
                    pending.append(pool.submit(compile_one, configs[place + ahead]))
                yield config
        finally:
            for future in pending:
                future.cancel()
