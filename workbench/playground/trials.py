"""`Rig`: a case set up to try configurations on, in a worker process.

A configuration is compiled, run into poisoned outputs and held to the reference; where there is a
GPU it is timed in turn with the default, then the very graph that was timed is replayed on inputs
that it has not seen, into poisoned outputs again. So a kernel that writes nothing, returns what it
remembers, or works on another stream than the one that is timed is wrong, not fast.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from workbench.bench.gpu import num_rotations
from workbench.errors import telling_line
from workbench.kernels.launch import INTERPRETED, Config, Plan
from workbench.playground.checking import OK, Oracle
from workbench.playground.subject import Subject, Trial, config_key
from workbench.playground.timing import Graph, time_together

# Said by torch and Triton of a context that is of no more use; torch's allocator after a capture.
_LOST = ("CUDA error", "[CUDA]", "INTERNAL ASSERT FAILED")


class Rig:
    """Inputs, expected outputs and timed default of one subject on one device."""

    def __init__(self, subject: Subject, device: torch.device, threads: int = 8) -> None:
        self.subject, self.spec = subject, subject.spec
        self.oracle = Oracle(self.spec, subject.case, subject.torch_dtype, device, subject.seed)
        self.inputs = self.oracle.inputs
        self.timed = device.type == "cuda"
        self.num_bytes = self.spec.num_bytes(**self.inputs)
        count = num_rotations(self.num_bytes, device) if self.timed else 1
        make = partial(self.spec.inputs, subject.case, subject.torch_dtype, device)
        self.rotation = [self.inputs, *(make(subject.seed + i) for i in range(1, count))]
        self._pool = ThreadPoolExecutor(threads)
        self._compiling: dict[str, Future[None]] = {}

    def facts(self) -> dict[str, Any]:
        """Return the space and the costs of the case, for a sweep's header."""
        spec, inputs = self.spec, self.inputs
        return {
            "space": {name: list(values) for name, values in spec.space.items()},
            "configs": [dict(config) for config in spec.configs(inputs)],
            "bucket": spec.bucket(**inputs),
            "source_hash": spec.source_hash,
            "num_bytes": self.num_bytes,
            "flops": spec.flops(**inputs),
            "rotated": len(self.rotation),
        }

    def close(self) -> None:
        """Forget what is being compiled."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- one configuration -----------------------------------------------------------------------

    def try_config(
        self, config: Config, *, seconds: float = 0.5, ahead: Sequence[Config] = ()
    ) -> Trial:
        """Compile, check and time a configuration; compile those in `ahead` after it, meanwhile.

        Compilers share Python's lock: were all to begin at once, this one would wait for all.
        """
        started = time.perf_counter()
        try:
            plan, resources = self._compiled(dict(config))
            for each in ahead:
                self._compile(each)
            trial = self._tried(dict(config), plan, resources, seconds)
        except Exception as error:  # noqa: BLE001 - a candidate may raise anything; that is its row
            trial = Trial(dict(config), *failure(error))
        if self.timed:
            try:  # a fault that is reported late must not be the next one's
                torch.cuda.synchronize()
            except RuntimeError as error:
                trial = Trial(dict(config), *failure(error))
        return replace(trial, seconds=round(time.perf_counter() - started, 3))

    def _compiled(self, config: dict[str, int]) -> tuple[Plan, list[dict[str, Any]]]:
        """Return a configuration's plan, and what it takes on this GPU."""
        pending = self._compiling.pop(config_key(config), None)
        if pending is not None:
            pending.result()
        plan = self.spec.plan(**self.inputs, config=config)
        return plan, resources_of(plan) if self.timed else []

    def _tried(
        self, config: dict[str, int], plan: Plan, resources: list[dict[str, Any]], seconds: float
    ) -> Trial:
        found, wrong = self.oracle.check(plan)
        trial = Trial(config, OK, max_err=found.max_err, share=found.share, resources=resources)
        if not found.ok:
            return replace(trial, status="wrong", reason=wrong)
        run: Any = plan.run
        if self.timed and plan.launches:
            plans = [plan, *(self.spec.plan(**i, config=config) for i in self.rotation[1:])]
            graph = Graph([each.run for each in plans])
            both = {"this": graph, "default": self.default_graph}
            times = time_together(both, seconds, beside=("this", "default"))
            trial = replace(trial, us=times["this"], default_us=times["default"]["p50"])
            # One that adds to its inputs must be run once: a sample may hold it many times.
            run = graph.once.replay if self.oracle.accumulates(plan) else graph.replay
        after, wrong = self.oracle.recheck(plan, run)
        if after.ok:
            return trial
        reason = f"after the first run, on inputs it had not seen: {wrong}"
        trial = replace(trial, max_err=after.max_err, share=after.share)
        return replace(trial, status="wrong", reason=reason, us=None, default_us=None)

    # --- several ---------------------------------------------------------------------------------

    @cached_property
    def default_graph(self) -> Graph:
        """The default configuration over the rotation."""
        return self._graph(self.spec.default(**self.inputs))

    def finals(
        self, configs: Sequence[Config], seconds: float
    ) -> tuple[list[dict[str, float]], dict[str, dict[str, float]]]:
        """Time configurations, the default and the library in turn, longer.

        Returns the configurations' figures, and those of "default" and, where there is one,
        "library".
        """
        graphs = {str(place): self._graph(config) for place, config in enumerate(configs)}
        graphs["default"] = self.default_graph
        times = time_together({**graphs, **self._library()}, seconds)
        return [times.pop(str(place)) for place in range(len(configs))], times

    def against(self, current: Rig, seconds: float) -> dict[str, dict[str, float]]:
        """Time the default configuration beside another rig's, and beside the library.

        Returns figures by "cell" (this one's), "current" and "library".
        """
        graphs = {"cell": self.default_graph, "current": current.default_graph}
        return time_together({**graphs, **self._library()}, seconds)

    def _library(self) -> dict[str, Graph]:
        baseline = self.spec.baseline
        try:
            if baseline is None or baseline(**self.inputs) is None:
                return {}
            return {"library": Graph([partial(baseline, **each) for each in self.rotation])}
        except RuntimeError as error:  # not every library call fits, or can be captured
            warnings.warn(f"{self.spec.name}: the library is not timed, {error}", stacklevel=2)
            return {}

    def _graph(self, config: Config) -> Graph:
        plans = [self.spec.plan(**each, config=dict(config)) for each in self.rotation]
        return Graph([plan.run for plan in plans])

    def _compile(self, config: Config) -> None:
        """Begin to compile a configuration; its failure shows when it is tried."""
        key = config_key(config)
        if self.timed and not INTERPRETED and key not in self._compiling:
            with suppress(Exception):  # it will be raised when the configuration is tried
                plan = self.spec.plan(**self.inputs, config=dict(config))
                self._compiling[key] = self._pool.submit(_warm_up, plan)


def _warm_up(plan: Plan) -> None:
    for launch in plan.launches:
        launch.kernel.warmup(**launch.keywords, grid=launch.grid)


def resources_of(plan: Plan) -> list[dict[str, Any]]:
    """Return what each launch of a plan takes on the present GPU: see `Trial.resources`.

    Raises what the compiler raises, and `OutOfResources` for what this GPU does not have.
    """
    found = []
    for launch in plan.launches:
        compiled = launch.kernel.warmup(**launch.keywords, grid=launch.grid)
        compiled._init_handles()
        taken = {"kernel": launch.kernel.__name__, "programs": math.prod(launch.grid)}
        taken |= {"registers": compiled.n_regs, "spills": compiled.n_spills}
        meta = compiled.metadata
        found.append(taken | {"shared": meta.shared, "num_warps": meta.num_warps})
    return found


def failure(error: Exception) -> tuple[str, str]:
    """Return status and reason of a candidate that raised."""
    text = f"{type(error).__name__}: {telling_line(error)[:200]}"
    if isinstance(error, OutOfResources):
        return "out of resources", text
    if isinstance(error, CompilationError | PTXASError) or "PassManager" in str(error):
        return "does not compile", text
    return ("crashed" if any(sign in str(error) for sign in _LOST) else "failed"), text
