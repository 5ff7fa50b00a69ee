"""`workbench tune KERNEL …`: search kernels' spaces without a notebook.

On a CUDA GPU each case is swept, and winners go to `kernels/tuned/<gpu>.json`, which the engine
reads. Without one candidates are checked in Triton's interpreter (small cases only) and compiled
for `--target`; no table is written. Sweeps go on where they stopped: run the same command again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from workbench.errors import ConfigError
from workbench.kernels.registry import SPECS, get_spec
from workbench.kernels.tuning import FOLDER, TunedTable
from workbench.playground.client import Worker, WorkerLost
from workbench.playground.search import METHODS
from workbench.playground.subject import DTYPES, Subject, Trial, config_key
from workbench.playground.sweep import Sweep, sweep_name
from workbench.playground.tuner import tune, tuned_row

_WEIGHTS = {"prefill_attention": 4, "paged_decode": 3, "gemv": 2}


def main(argv: list[str] | None = None) -> int:
    """Print a line for each case; exit code 1 if a default configuration is wrong."""
    arguments = _parser().parse_args(argv)
    on_gpu = torch.cuda.is_available()
    subjects = chosen(arguments, on_gpu)
    bad = 0
    deadline = time.monotonic() + arguments.budget
    with Worker() as worker, Worker(interpret=False) as compiler:
        for subject, share in budget_shares(subjects):
            started = time.monotonic()
            try:
                sweep = tune(
                    subject,
                    worker=worker,
                    compiler=None if on_gpu else compiler,
                    target=arguments.target,
                    path=Path(arguments.sweeps) / sweep_name(subject),
                    search=arguments.search,
                    budget=share * (deadline - started),
                    max_trials=arguments.trials,
                    progress=_print_trial if arguments.verbose else lambda *_: None,
                )
            except (WorkerLost, ConfigError) as why:  # another machine's file, say
                print(f"{subject.kernel} / {subject.case}: not swept, {why}")
                bad += 1
                continue
            print(_summary(sweep, time.monotonic() - started), flush=True)
            default = next(iter(sweep.trials.values()))
            if not default.ok:
                print(f"  the default configuration is {default.status}: {default.reason}")
                bad += 1
            if sweep.finals:
                _save(sweep, Path(arguments.tuned) if arguments.tuned else FOLDER)
    return 1 if bad else 0


def chosen(arguments: argparse.Namespace, on_gpu: bool) -> list[Subject]:
    """Return what to sweep; raise `ConfigError` for a case that this machine cannot try."""
    names = list(SPECS) if arguments.kernel == "all" else arguments.kernel.split(",")
    capability = 0
    if on_gpu:
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    found = []
    for spec in map(get_spec, names):
        cases = spec.cases
        if arguments.case and arguments.case not in cases and len(names) == 1:
            spec.inputs(arguments.case, torch.float32)  # raises, with the known names
        for name, case in cases.items():
            if arguments.case:
                wanted = name == arguments.case
            elif on_gpu:
                wanted = case.quick or (not case.small and not arguments.quick)
            else:
                wanted = case.small
            if not wanted or (on_gpu and case.min_capability > capability):
                continue
            if not on_gpu and not case.small:
                raise ConfigError(
                    "case", name, "is too large for Triton's interpreter",
                    "Take a small case, or a machine with a GPU.",
                )  # fmt: skip
            # The interpreter computes bfloat16 wrongly.
            dtype = arguments.dtype or ("bfloat16" if on_gpu else "float16")
            found.append(Subject(spec.name, name, dtype, arguments.seed))
    return found


def budget_shares(subjects: list[Subject]) -> list[tuple[Subject, float]]:
    """Return which part of the time that is then left each may take: what one leaves, others have.

    Compiling takes longest where it matters most, so those have larger parts.
    """
    weights = [_WEIGHTS.get(subject.kernel, 1) for subject in subjects]
    return [
        (subject, weights[place] / sum(weights[place:])) for place, subject in enumerate(subjects)
    ]


def _save(sweep: Sweep, folder: Path) -> None:
    """Put a sweep's winner into its GPU's table: what was found stays if a later case ends it."""
    table = TunedTable.load(sweep.header["device"], folder)
    row = tuned_row(sweep)
    table.rows[row.key] = row
    print(f"  written: {table.save(folder).name}", flush=True)


def _print_trial(trial: Trial, tried: int, total: int) -> None:
    outcome = f"{trial.p50:.1f} us" if trial.p50 is not None else trial.status
    print(f"  {tried}/{total} {config_key(trial.config)}: {outcome} {trial.reason}", flush=True)


def _summary(sweep: Sweep, seconds: float) -> str:
    """Return a sweep's line."""
    header, trials = sweep.header, list(sweep.trials.values())
    failed: dict[str, int] = {}
    for trial in trials:
        if not trial.ok:
            failed[trial.status] = failed.get(trial.status, 0) + 1
    line = f"{header['kernel']} / {header['case']} {header['dtype']} on {header['device']}: "
    line += f"{len(trials)} of {header['num_configs']} tried in {seconds:.0f} s"
    line += "".join(f", {count} {status}" for status, count in failed.items())
    if not sweep.finals:
        return line + ("; checked, nothing timed" if header["target"] is None else "")
    best, default = sweep.finals["best"], sweep.finals["default"]["p50"]
    line += f"; {default:.1f} -> {best['us']['p50']:.1f} us with {config_key(best['config'])}"
    if "library" in sweep.finals:
        line += f"; library {sweep.finals['library']['p50']:.1f} us"
    return line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workbench tune", description=__doc__)
    add = parser.add_argument
    add("kernel", help=f"comma-separated, or all: {', '.join(SPECS)}")
    add("--case", help="the cases of this name only")
    add("--quick", action="store_true", help="only the cases that matter most")
    add("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float16 in the interpreter")
    add("--budget", type=float, default=330, help="seconds for all together, about")
    add("--trials", type=int, help="at most so many configurations a case")
    add("--search", choices=METHODS, default="auto")
    add("--target", default="cuda:90", help="without a GPU: what to compile for")
    add("--sweeps", default="sweeps", help="the folder of sweep files (default: ./sweeps)")
    add("--tuned", help="the folder of tuned tables (default: kernels/tuned)")
    add("--seed", type=int, default=0)
    add("--verbose", action="store_true", help="a line for each configuration")
    return parser
