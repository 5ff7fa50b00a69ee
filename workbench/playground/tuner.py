"""`tune`: search a kernel's space on one case, every candidate verified in a worker process.

Where there is a GPU candidates are timed as well, the best few again beside each other, the default
and the library, and the winner becomes a `TunedRow`. Without one they are held to the reference in
Triton's interpreter and compiled for a target: what they take is known then, and no time is made
up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.bench.gpu import Ceilings
from workbench.errors import ConfigError, WorkbenchError
from workbench.kernels.tuning import TunedRow
from workbench.playground import jobs
from workbench.playground.checking import OK
from workbench.playground.client import Worker, WorkerLost
from workbench.playground.search import make_search
from workbench.playground.subject import Subject, Trial, config_key
from workbench.playground.sweep import Sweep, header_of, open_sweep

PREPARE_SECONDS, TRIAL_SECONDS = 180.0, 60.0  # compiling included: some take ten seconds
FINALISTS, FINALS_SECONDS = 4, 1.5
_AHEAD = 16

Progress = Callable[[Trial, int, int], None]
"""Called after each trial with it, how many were tried, and how many there are."""


def tune(
    subject: Subject,
    *,
    worker: Worker,
    compiler: Worker | None = None,
    target: str = "cuda:90",
    path: Path | None = None,
    search: str = "auto",
    budget: float = 180.0,
    max_trials: int | None = None,
    seconds: float = 0.4,
    progress: Progress = lambda *_: None,
) -> Sweep:
    """Sweep a subject's space for at most `budget` seconds or `max_trials`; return the sweep.

    The default is tried however short the budget, and what was timed is timed once more together.
    worker tries; compiler (not interpreting) compiles for `target` where `worker` has no GPU; path
    is the file to write, and to go on with. seconds: of timing for each candidate. Raises
    `ConfigError` for a file of another sweep, and `WorkerLost` where the inputs cannot be made.
    """
    started = time.monotonic()
    facts = prepare(subject, worker)
    on_gpu = facts["target"] is not None
    header = header_of(subject, facts) | {"compiled_for": None if on_gpu else target}
    sweep = Sweep(header) if path is None else open_sweep(path, header)
    order = make_search(search, facts["configs"], subject.seed)
    for trial in sweep.trials.values():
        order.tell(trial)
    reserved = FINALS_SECONDS if on_gpu else 0.0
    known = len(sweep.trials)
    total = min(len(facts["configs"]), max_trials or len(facts["configs"]))
    while len(sweep.trials) < total:
        if sweep.trials and time.monotonic() - started > budget - reserved:
            break
        config = order.next()
        if config is None:
            break
        trial = try_config(subject, config, worker, seconds, order.ahead(_AHEAD))
        if trial.status == "cancelled":
            break
        if not on_gpu and compiler is not None:
            trial = _with_resources(subject, trial, compiler, target)
        order.tell(trial)
        sweep.add(trial)
        progress(trial, len(sweep.trials), total)
    if on_gpu and sweep.timed and (len(sweep.trials) > known or not sweep.finals):
        sweep.finish(_finals(subject, worker, sweep))
    return sweep


def prepare(subject: Subject, worker: Worker) -> dict[str, Any]:
    """Return what a worker says of a subject and its machine; raise `WorkerLost` if it cannot."""
    facts = worker.ask(jobs.Prepare(subject), PREPARE_SECONDS)
    if isinstance(facts, jobs.Failed):
        raise WorkerLost(facts.status, facts.reason)
    assert isinstance(facts, dict)
    return facts


def try_config(
    subject: Subject,
    config: dict[str, int],
    worker: Worker,
    seconds: float = 0.4,
    ahead: tuple[dict[str, int], ...] = (),
) -> Trial:
    """Try one configuration while those in `ahead` are compiled beside it.

    A worker that dies or hangs is the trial's reason. It may have died of another one's
    compilation: then this one is tried again alone, and so are those, each when its turn comes.
    """
    ahead = tuple(c for c in ahead if (subject, config_key(c)) not in worker.suspects)
    if (subject, config_key(config)) in worker.suspects:
        ahead = ()
    trial = _trial(jobs.Try(subject, config, seconds, ahead), worker)
    if trial.status == "crashed" and ahead:
        worker.suspects |= {(subject, config_key(c)) for c in ahead}
        trial = _trial(jobs.Try(subject, config, seconds), worker)
    return trial


def _trial(job: jobs.Try, worker: Worker) -> Trial:
    subject, config = job.subject, job.config
    try:
        if not worker.knows(subject):  # what making the inputs takes is not the candidate's fault
            prepare(subject, worker)
        answer = worker.ask(job, TRIAL_SECONDS + job.seconds)
    except WorkerLost as lost:
        return Trial(dict(config), lost.status, lost.reason)
    except WorkbenchError as error:
        return Trial(dict(config), "failed", str(error))
    if isinstance(answer, jobs.Failed):
        return Trial(dict(config), answer.status, answer.reason)
    assert isinstance(answer, Trial)
    return answer


def _with_resources(subject: Subject, trial: Trial, compiler: Worker, target: str) -> Trial:
    """Add what the compiler for a target says; what does not compile there is not "ok"."""
    try:
        compiled = compiler.ask(jobs.Compile(subject, trial.config, target), TRIAL_SECONDS)
    except WorkerLost as lost:
        compiled = jobs.Failed(lost.status, lost.reason)
    if isinstance(compiled, jobs.Failed):
        if trial.status != OK:
            return trial
        reason = f"for {target}: {compiled.reason}"
        return replace(trial, status=compiled.status, reason=reason)
    return replace(trial, resources=compiled.resources)


def _finals(subject: Subject, worker: Worker, sweep: Sweep) -> dict[str, Any]:
    """Time the best few together, with the default and the library.

    Where that ends the process, those that do so alone as well become rows that say it.
    """
    best = [trial.config for trial in sweep.timed[:FINALISTS]]
    try:
        figures, others = _timed_together(subject, worker, best)
    except WorkerLost as lost:
        if lost.status == "cancelled":
            raise
        guilty = [trial for config in best if (trial := _alone(subject, worker, config))]
        for trial in guilty:
            sweep.add(trial)
        if not guilty or not sweep.timed:
            raise
        return _finals(subject, worker, sweep)
    place = min(range(len(best)), key=lambda k: figures[k]["p50"])
    entries = [{"config": c, "us": us} for c, us in zip(best, figures, strict=True)]
    return {"best": entries[place], "candidates": entries, **others}


def _alone(subject: Subject, worker: Worker, config: dict[str, int]) -> Trial | None:
    """Time one configuration as in the finals; return what it failed by, None if by nothing."""
    try:
        _timed_together(subject, worker, [config])
    except WorkerLost as lost:
        return Trial(config, lost.status, f"timed once more: {lost.reason}")
    return None


def _timed_together(subject: Subject, worker: Worker, configs: list[dict[str, int]]) -> Any:
    """Return `Rig.finals` of these configurations; raise `WorkerLost` if there is no answer."""
    if not worker.knows(subject):
        prepare(subject, worker)
    answer = worker.ask(jobs.Finals(subject, tuple(configs), FINALS_SECONDS), 120.0)
    if isinstance(answer, jobs.Failed):
        raise WorkerLost(answer.status, answer.reason)
    return answer


def tuned_row(sweep: Sweep) -> TunedRow:
    """Return a finished sweep's winner for the tuned table; `ConfigError` if it has none."""
    if not sweep.finals:
        raise ConfigError("sweep", str(sweep.path), "nothing was timed", "Sweep it on a GPU.")
    header, finals = sweep.header, sweep.finals
    config, us = finals["best"]["config"], finals["best"]["us"]
    floor = Ceilings(**header["ceilings"]).floor_us(header["num_bytes"], header["flops"])
    library = finals.get("library")
    return TunedRow(
        **{name: header[name] for name in ("kernel", "source_hash", "bucket", "dtype", "device")},
        **{name: header[name] for name in ("driver", "triton", "torch", "seed")},
        config=config,
        latency_us={name: round(us[name], 2) for name in ("p50", "p90")},
        default_us=round(finals["default"]["p50"], 2),
        library_us=None if library is None else round(library["p50"], 2),
        bound=round(floor / us["p50"], 3),
        max_err=sweep.trials[config_key(config)].max_err or 0.0,
        checked=[header["case"]],
    )
