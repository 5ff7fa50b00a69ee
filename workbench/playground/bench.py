"""`workbench bench playground`: how long a user of the playground waits, beside what is asked.

From a selection to its figures, for configurations that were measured before and for new ones; a
sweep of `paged_decode`; cross-compiling; a kernel written in a cell put into a running engine.
Triton's cache is empty at first, so what is compiled is. Without a GPU new configurations are
checked in the interpreter, the sweep is left out, and a swap needs TRITON_INTERPRET=1 in the
environment.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from workbench.bench.gpu_engine import random_model
from workbench.bench.gpu_workloads import SHAPES
from workbench.bench.measure import Figures, Row, append_rows, machine
from workbench.build import build
from workbench.config import EngineConfig
from workbench.engine import Engine
from workbench.kernels.launch import INTERPRETED
from workbench.kernels.registry import SPECS
from workbench.playground.cells import spec_of_cell
from workbench.playground.client import Worker
from workbench.playground.compiling import cross_compile
from workbench.playground.session import Session
from workbench.playground.subject import Subject
from workbench.playground.tuner import tune
from workbench.sampling_params import SamplingParams

TARGET = "cuda:90"
SWEEP = ("paged_decode", "llama-8b 1x16k", 200)
SELECT_SECONDS = 60.0
_NEW, _KNOWN = 3, 10  # selections of each kernel
_SWAP_ROWS = 32
# Seconds, by figure.
ASKED = {"known": 0.150, "new": 1.5, "sweep": 180.0, "compile": 3.0, "swap": 2.0}


def main(argv: list[str] | None = None) -> int:
    """Print what is asked and what was got, write the rows; return 0."""
    arguments = _parser().parse_args(argv)
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "cpu"
    where = machine() | {"device": device, "load": os.getloadavg()[0]}
    print(json.dumps(where))
    kernels = arguments.kernel.split(",") if arguments.kernel else list(SPECS)
    parts: dict[str, Callable[[], dict[str, list[float]]]] = {
        "select": lambda: select(kernels),
        "compile": lambda: compile_all(kernels),
        "sweep": lambda: sweep(arguments.budget) if cuda else {},
        "swap": lambda: swap() if cuda or INTERPRETED else {},
    }
    rows = []
    for part in arguments.parts.split(","):
        with fresh_cache():
            for figure, seconds in parts[part]().items():
                rows.append(_row(figure, seconds, where))
                print(line(rows[-1]), flush=True)
    if arguments.rows:
        append_rows(Path(arguments.rows), rows)
    return 0


@contextmanager
def fresh_cache() -> Iterator[None]:
    """Give processes that are started within a cache of Triton's that is empty."""
    before = os.environ.get("TRITON_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("TRITON_CACHE_DIR")
            if before is not None:
                os.environ["TRITON_CACHE_DIR"] = before


def select(kernels: list[str]) -> dict[str, list[float]]:
    """Return seconds from a selection to its trial, of new configurations and of known ones."""
    cuda = torch.cuda.is_available()
    dtype = "bfloat16" if cuda else "float16"
    subjects = [Subject(kernel, _case(kernel, quick=cuda), dtype) for kernel in kernels]
    new, known = list[float](), list[float]()
    told = threading.Event()
    session = Session(subjects[0], TARGET, told.set)
    try:
        for subject in subjects:
            session.choose(subject=subject)
            session.wait(180)
            space = [config for config in session.configs if config != session.config]
            drawn = random.Random(0).sample(space, min(_NEW, len(space)))
            taken = [_figures_after(session, told, config) for config in drawn]
            new += taken
            print(f"  {subject.kernel} / {subject.case}: {' '.join(f'{s:.2f}' for s in taken)} s")
            if session.sweep is not None:
                tried = [trial.config for trial in session.sweep.trials.values()]
                for number in range(_KNOWN):
                    known.append(_figures_after(session, told, tried[number % len(tried)]))
    finally:
        session.close()
    return {"new": new, "known": known}


def _figures_after(session: Session, told: threading.Event, config: dict[str, int]) -> float:
    """Return the seconds from a selection until the panel is told and has its trial to draw.

    Compiling for a target, which goes on beside it, is not waited for.
    """
    told.clear()
    begin = time.perf_counter()
    session.choose(config=config)
    while told.wait(SELECT_SECONDS) and session.trial is None:
        told.clear()
    return time.perf_counter() - begin


def compile_all(kernels: list[str]) -> dict[str, list[float]]:
    """Return the seconds that each kernel's default takes to compile, in a worker that runs."""
    taken = []
    with Worker(interpret=False) as worker:
        worker.start()
        time.sleep(1.0)  # so soon no one has chosen anything
        for kernel in kernels:
            begin = time.perf_counter()
            cross_compile(kernel, _case(kernel, quick=False), target=TARGET, worker=worker)
            taken.append(time.perf_counter() - begin)
            print(f"  {kernel} for {TARGET}: {taken[-1]:.2f} s")
    return {"compile": taken}


def sweep(budget: float) -> dict[str, list[float]]:
    """Return the seconds of the sweep, its set-up aside; scaled up where the budget ended it."""
    kernel, case, trials = SWEEP
    with Worker() as worker:
        begin = time.perf_counter()
        found = tune(Subject(kernel, case), worker=worker, max_trials=trials, budget=budget)
        seconds = time.perf_counter() - begin
    count, timed = len(found.trials), len(found.timed)
    print(f"  {kernel} / {case}: {count} of {trials} in {seconds:.1f} s, {timed} of them timed")
    return {"sweep": [seconds * trials / count]}


def swap() -> dict[str, list[float]]:
    """Return the seconds from a cell to the first token by its kernel, while requests run."""
    with _engine() as engine:
        params = SamplingParams(max_tokens=64, temperature=0, ignore_eos=True)
        for number in range(_SWAP_ROWS if torch.cuda.is_available() else 1):
            engine.add([100 + number] * 8, params)
        usual = [_step(engine) for _ in range(10 if torch.cuda.is_available() else 3)]
        kernel = SPECS["silu_mul"]
        source = inspect.getsource(inspect.getmodule(kernel.plan).silu_mul_kernel.fn)  # type: ignore[union-attr]
        cell = f"from workbench.kernels.early import await_previous\n\n\n{source}# {time.time()}\n"
        begin = time.perf_counter()
        engine.swap(kernel=spec_of_cell(cell, "silu_mul"))
        swapped = time.perf_counter() - begin
        first = _step(engine)
        print(f"  swapped in {1e3 * swapped:.1f} ms; the next step {first:.2f} s, where one takes "
              f"{1e3 * statistics.median(usual):.1f} ms")  # fmt: skip
    return {"swap": [swapped + first]}


def _engine() -> Engine:
    if torch.cuda.is_available():
        model = random_model(SHAPES["llama-8b"], torch.device("cuda"))
        settings: dict[str, Any] = {"num_blocks": 1024, "max_sequences": _SWAP_ROWS}
        return build(EngineConfig(device="cuda", backend="triton", **settings), model=model)
    return build(EngineConfig(model="tinypy", backend="triton", dtype="float32"))


def _step(engine: Engine) -> float:
    begin = time.perf_counter()
    engine.step()
    return time.perf_counter() - begin


def _case(kernel: str, *, quick: bool) -> str:
    """Return a kernel's first case that `--quick` measures, else its last small one."""
    cases = SPECS[kernel].cases
    if quick:
        return next(name for name, case in cases.items() if case.quick)
    return [name for name, case in cases.items() if case.small and case.min_capability < 89][-1]


def line(row: Row) -> str:
    """Return a row in words: of compilations each is asked for, of the others the median."""
    asked, got = ASKED[row.case], row.where["longest"] if row.case == "compile" else row.median
    met = "met" if got <= asked else f"MISSED by {got - asked:.3f} s"
    return (
        f"{row.case:<8} asked {asked:6.2f} s, got {row.median:7.3f} s "
        f"[{row.low:.3f}..{row.high:.3f}] n={row.n}: {met}"
    )


def _row(figure: str, seconds: list[float], where: dict[str, Any]) -> Row:
    facts = {"asked": ASKED[figure], "longest": max(seconds)}
    what = "playground", figure, "workbench", "seconds"
    return Row(*what, *Figures.of(seconds), where=where | facts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workbench bench playground", description=__doc__)
    add = parser.add_argument
    add("--parts", default="select,compile,sweep,swap", help="parted by commas (default: all)")
    add("--kernel", help="these kernels only, for select and compile")
    add("--budget", type=float, default=40, help="seconds for the sweep")
    add("--rows", help="append the rows to this JSON-lines file")
    return parser
