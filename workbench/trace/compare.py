"""`compare`: one seeded workload under two configurations, side by side, first divergence marked.

    wb.compare({"model": "tinypy"}, {"model": "tinypy", "dtype": "bfloat16"}, prompts, params)

A run is whatever makes an engine, an engine, or a finished trace; what is compared is read off the
two traces alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from workbench.build import build
from workbench.config import EngineConfig
from workbench.data.workload import Workload
from workbench.engine import Engine
from workbench.errors import InvalidValue
from workbench.request import Prompt
from workbench.sampling_params import SamplingParams
from workbench.trace.comparison import Comparison
from workbench.trace.run_workload import run_workload
from workbench.trace.trace import Trace

Run = Trace | Engine | EngineConfig | Mapping[str, Any] | Callable[[], Engine]


def compare(
    run_a: Run,
    run_b: Run,
    workload: Workload | Sequence[Prompt] | None = None,
    params: SamplingParams | Sequence[SamplingParams] | None = None,
    *,
    seed: int = 0,
    names: tuple[str, str] = ("a", "b"),
) -> Comparison:
    """Run one workload twice and return what differs.

    run_a, run_b: a function that makes an engine, an `EngineConfig` or its settings (engines made
    here are closed again), an engine, or a `Trace` that was recorded before. workload: prompts,
    which come all at once, or a `Workload`, in virtual time; not needed for two traces. params: one
    for all, or one for each prompt (None: 32 tokens, greedily); log-probabilities of two tokens are
    noted in any case, so that a divergence has its margin. seed: of the requests that bring none.
    Raises `InvalidValue` for a run or workload that is none.
    """
    traces = [
        _trace(run, workload, params, seed, f"run_{which}")
        for which, run in zip("ab", (run_a, run_b), strict=True)
    ]
    return Comparison(traces[0], traces[1], names)


def _trace(
    run: Run,
    workload: Workload | Sequence[Prompt] | None,
    params: SamplingParams | Sequence[SamplingParams] | None,
    seed: int,
    field: str,
) -> Trace:
    if isinstance(run, Trace):
        return run
    if workload is None or isinstance(workload, str):
        fix = "Pass a list of prompts, or a `Workload`."
        raise InvalidValue("workload", workload, "is nothing to run", fix)
    if isinstance(run, Engine):
        return _record(run, workload, params, seed)
    with _made(run, field) as engine:
        return _record(engine, workload, params, seed)


def _made(run: Any, field: str) -> Engine:
    if isinstance(run, Mapping):
        return build(EngineConfig(**run))
    if isinstance(run, EngineConfig):
        return build(run)
    engine = run() if callable(run) else None
    if not isinstance(engine, Engine):
        fix = "Pass a function that returns an `Engine`, an `EngineConfig`, or a `Trace`."
        raise InvalidValue(field, run, "makes no engine", fix)
    return engine


def _record(
    engine: Engine,
    workload: Workload | Sequence[Prompt],
    params: SamplingParams | Sequence[SamplingParams] | None,
    seed: int,
) -> Trace:
    if isinstance(workload, Workload):
        if params is not None and not isinstance(params, SamplingParams):
            fix = "Give one for all: lengths are the workload's."
            raise InvalidValue("params", f"{len(params)} of them", "for a `Workload`", fix)
        one = _noted(params or SamplingParams(temperature=0), seed)
        with Trace.record(engine) as trace:
            run_workload(engine, workload, params=one)
        return trace
    default = SamplingParams(max_tokens=32, temperature=0)
    if params is None or isinstance(params, SamplingParams):
        params = [params or default] * len(workload)
    if len(params) != len(workload):
        fix = "Give one for all, or a list with one each."
        raise InvalidValue("params", f"{len(params)} of them", f"for {len(workload)} prompts", fix)
    each = [_noted(own, seed + place) for place, own in enumerate(params)]
    with Trace.record(engine) as trace:
        request_ids = []
        try:
            for place, (prompt, own) in enumerate(zip(workload, each, strict=True)):
                request_ids.append(engine.add(prompt, own, request_id=f"compared-{place}"))
            engine.run()
        finally:
            engine.discard(request_ids)
    return trace


def _noted(params: SamplingParams, seed: int) -> SamplingParams:
    """Return parameters that note two log-probabilities a token, with a seed."""
    logprobs = max(2, params.logprobs or 0)
    return replace(params, logprobs=logprobs, seed=seed if params.seed is None else params.seed)
