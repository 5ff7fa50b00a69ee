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
from workbench.playground.search import Search, make_search
from workbench.playground.subject import Subject, Trial, config_key
from workbench.playground.sweep import Sweep, header_of, open_sweep

PREPARE_SECONDS, TRIAL_SECONDS = 180.0, 30.0
FINALISTS = 4
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
    total = min(len(facts["configs"]), max_trials or len(facts["configs"]))
    crowd = _Crowd(subject, worker, order, seconds)
    while len(sweep.trials) < total:
        if sweep.trials and time.monotonic() - started > budget:
            break
        config = order.next()
        if config is None:
            break
        trial = crowd.tried(config)
        if trial.status == "cancelled":
            break
        if not on_gpu and compiler is not None:
            trial = _with_resources(subject, trial, compiler, target)
        order.tell(trial)
        sweep.add(trial)
        progress(trial, len(sweep.trials), total)
    if on_gpu and sweep.timed and not sweep.finals:
        sweep.finish(_finals(subject, worker, sweep))
    return sweep


def prepare(subject: Subject, worker: Worker) -> dict[str, Any]:
    """Return what a worker says of a subject and its machine; raise `WorkerLost` if it cannot."""
    facts = worker.ask(jobs.Prepare(subject), PREPARE_SECONDS)
    if isinstance(facts, jobs.Failed):
        raise WorkerLost(facts.status, facts.reason)
    assert isinstance(facts, dict)
    return facts


class _Crowd:
    """Tries configurations one by one while the next ones are compiled beside them.

    A compiler that takes the process with it may have been at another one's: after a crash all that
    were under way are tried alone, so that the right one is blamed.
    """

    def __init__(self, subject: Subject, worker: Worker, order: Search, seconds: float) -> None:
        self._subject, self._worker, self._order = subject, worker, order
        self._seconds = seconds
        self._suspects: set[str] = set()

    def tried(self, config: dict[str, int]) -> Trial:
        """Return the trial of a configuration, whatever became of the process."""
        ahead: tuple[dict[str, int], ...] = ()
        if config_key(config) not in self._suspects:
            coming = self._order.ahead(_AHEAD)
            ahead = tuple(c for c in coming if config_key(c) not in self._suspects)
        trial = try_config(self._subject, config, self._worker, self._seconds, ahead)
        if trial.status == "crashed" and ahead:
            self._suspects |= {config_key(c) for c in ahead}
            trial = try_config(self._subject, config, self._worker, self._seconds)
        return trial


def try_config(
    subject: Subject,
    config: dict[str, int],
    worker: Worker,
    seconds: float = 0.4,
    ahead: tuple[dict[str, int], ...] = (),
) -> Trial:
    """Try one configuration; a worker that dies or hangs is the trial's reason."""
    try:
        if not worker.knows(subject):  # what making the inputs takes is not the candidate's fault
            prepare(subject, worker)
        answer = worker.ask(jobs.Try(subject, config, seconds, ahead), TRIAL_SECONDS + seconds)
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
    """Time the best few together, with the default and the library."""
    best = [trial.config for trial in sweep.timed[:FINALISTS]]
    if not worker.knows(subject):
        prepare(subject, worker)
    answer = worker.ask(jobs.Finals(subject, tuple(best), 1.5), 120.0)
    if isinstance(answer, jobs.Failed):
        raise WorkerLost(answer.status, answer.reason)
    figures, others = answer
    place = min(range(len(best)), key=lambda k: figures[k]["p50"])
    entries = [{"config": c, "us": us} for c, us in zip(best, figures, strict=True)]
    return {"best": entries[place], "candidates": entries, **others}


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
