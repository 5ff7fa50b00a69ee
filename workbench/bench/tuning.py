"""`workbench bench tuning`: what tuned configurations do to the engine's step, kernel by kernel.

A kernel may become half as slow and the step stay the same. Engines over one model, of random
weights, decode the same prompts: one with every kernel as shipped, one with one kernel's tuned
rows, one with all rows, and one as shipped again, which says what a difference is worth. They
replay graphs of their own and take turns, a few steps each. Rows are those of
`kernels/tuned/<gpu>.json` that a decode step finds there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.bench.gpu import require_gpu, synchronize
from workbench.bench.gpu_engine import random_model
from workbench.bench.gpu_workloads import SHAPES, get_shape
from workbench.bench.measure import Figures, Row, append_rows, hash_of, machine
from workbench.build import build
from workbench.config import EngineConfig
from workbench.engine import Engine
from workbench.models import DecoderLM
from workbench.ops import TritonBackend
from workbench.sampling_params import SamplingParams

if TYPE_CHECKING:
    from workbench.kernels.tuning import TunedRow, TunedTable

SHIPPED, AGAIN, ALL = "as shipped", "as shipped, again", "all"
_PROMPT, _WARM = 128, 8


def main(argv: list[str] | None = None) -> int:
    """Print a line for each kernel and batch, write the rows; return 0."""
    arguments = _parser().parse_args(argv)
    shape = get_shape(arguments.shape)
    device = require_gpu()
    from workbench.kernels.tuning import FOLDER, TunedTable

    named = torch.cuda.get_device_name(device)
    table = TunedTable.load(named, Path(arguments.tuned) if arguments.tuned else FOLDER)
    where = machine() | {"device": named, "shape": arguments.shape}
    print(json.dumps(where))
    model = random_model(shape, device)
    rows = []
    for count in map(int, arguments.batches.split(",")):
        rows += measure(model, table, count, arguments.rounds, arguments.steps, where)
        torch.cuda.empty_cache()
    if arguments.rows:
        append_rows(Path(arguments.rows), rows)
    return 0


def measure(
    model: DecoderLM,
    table: TunedTable,
    count: int,
    rounds: int,
    steps: int,
    where: Mapping[str, Any],
) -> list[Row]:
    """Measure decode steps of `count` sequences with each kernel's rows of a table; print them.

    rounds: turns of each engine; steps: in a turn. A row's median, low and high (10th and 90th
    percentile of the turns) are microseconds of a step.
    """
    length = _PROMPT + _WARM + 2 * rounds * steps + 8  # so that no request ends
    found = used_rows(model, table, count, length)
    variants: dict[str, list[TunedRow]] = {SHIPPED: [], AGAIN: []}
    for row in found:
        variants.setdefault(row.kernel, []).append(row)
    variants[ALL] = found
    engines = {name: start(model, table, rows, count, length) for name, rows in variants.items()}
    try:
        turns = take_turns(engines, rounds, steps)
        tokens = _tokens(engines)
    finally:
        for engine in engines.values():
            engine.close()
    shipped = statistics.median(turns[SHIPPED])
    made = []
    for name, times in turns.items():
        about = {"rows": [_short(row) for row in variants[name]], "shipped": shipped}
        about["same tokens"] = tokens[name] == tokens[SHIPPED]
        made.append(
            Row(
                *("tuning", f"decode_b{count}: {name}", "workbench", "µs a step"),
                *Figures.of(times),
                output_hash=tokens[name],
                where=dict(where) | about,
            )
        )
        print(line(made[-1]), flush=True)
    return made


def effects(rows: list[Row]) -> list[dict[str, Any]]:
    """Return a line for each batch and kernel, of the latest rows of each.

    step: the change of the step's median, as a share. own: that of the kernel's own time, from what
    the step has without the row (least and most over its rows). noise: what "as shipped" differs by
    from itself: between the two engines, or half the spread of either's turns. moved: whether the
    step's change is more than that.
    """
    latest = {row.case: row for row in rows if row.bench == "tuning"}
    found = []
    for case, row in latest.items():
        batch, _, kernel = case.partition(": ")
        same = [latest[f"{batch}: {name}"] for name in (SHIPPED, AGAIN)]
        noise = max(
            abs(same[1].median / same[0].median - 1),
            *((each.high - each.low) / 2 / each.median for each in same),
        )
        step = row.median / row.where["shipped"] - 1
        own = sorted(each["p50"] / each["before_us"] - 1 for each in row.where["rows"])
        found.append(
            {"batch": batch, "kernel": kernel, "us": row.median, "low": row.low, "high": row.high,
             "step": step, "own": (own[0], own[-1]) if own else None, "noise": noise,
             "moved": kernel not in (SHIPPED, AGAIN) and abs(step) > noise}
        )  # fmt: skip
    return found


def line(row: Row) -> str:
    """Return a row in words."""
    change = row.median / row.where["shipped"] - 1
    kernels = ", ".join(
        f"{each['bucket']} {each['before_us']:g} -> {each['p50']:g}" for each in row.where["rows"]
    )
    return (
        f"{row.case:<34}{row.median:8.1f} us a step [{row.low:.1f}..{row.high:.1f}] n={row.n} "
        f"{change:+.2%}{f'  (the kernel, us: {kernels})' if kernels else ''}"
    )


def used_rows(model: DecoderLM, table: TunedTable, count: int, length: int) -> list[TunedRow]:
    """Return the rows that decode steps of this size take their configurations from."""
    from workbench.kernels.tuning import TunedTable

    engine = start(model, TunedTable(table.device), list(table.rows.values()), count, length)
    backend = engine.runner.backend
    assert isinstance(backend, TritonBackend)
    backend.tuned.used.clear()
    if engine.runner.graphs is not None:
        engine.runner.graphs.clear()  # the next step asks anew
    engine.step()
    used = backend.tuned.used
    for key, why in used.items():
        if why != "tuned":
            print(f"  {' / '.join(key)}: {why}")
    found = [row for key, row in backend.tuned.rows.items() if used.get(key) == "tuned"]
    engine.close()
    return found


def start(
    model: DecoderLM, table: TunedTable, rows: list[TunedRow], count: int, length: int
) -> Engine:
    """Return an engine with these rows for its table, `count` sequences past their first tokens."""
    from workbench.kernels.tuning import TunedTable

    device = next(model.parameters()).device
    settings = EngineConfig(
        device=str(device),
        backend="triton",
        max_batch_tokens=8192,
        max_sequences=count,
        num_blocks=count * (-(-length // 16) + 2) + 1,
        prefix_reuse=False,
        seed=0,
    )
    engine = build(settings, model=model)
    assert isinstance(engine.runner.backend, TritonBackend)
    engine.runner.backend.tuned = TunedTable(table.device, rows)
    params = SamplingParams(max_tokens=length - _PROMPT, temperature=0, ignore_eos=True)
    names = [engine.add([100 + i] * _PROMPT, params) for i in range(count)]
    while any(engine.find(name).num_output_tokens < _WARM for name in names):
        engine.advance()
    engine.overlap.drop()
    return engine


def take_turns(engines: Mapping[str, Engine], rounds: int, steps: int) -> dict[str, list[float]]:
    """Return microseconds of a step for each engine's turns; those that captured are left out."""
    taken: dict[str, list[float]] = {name: [] for name in engines}
    order = list(engines)
    for number in range(2 * rounds):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            if len(taken[name]) == rounds:
                continue
            engine, made = engines[name], engines[name].runner.preparations
            synchronize(engine.runner.device)
            begin = time.perf_counter()
            for _ in range(steps):
                engine.advance()
            synchronize(engine.runner.device)
            if engine.runner.preparations == made:
                taken[name].append(1e6 * (time.perf_counter() - begin) / steps)
    return taken


def _tokens(engines: Mapping[str, Engine]) -> dict[str, str]:
    """Return a hash of what each engine's requests said, as far as all of them have come."""
    said = {}
    for name, engine in engines.items():
        engine.overlap.drop()
        said[name] = [engine.output(each).outputs[0].token_ids for each in engine.requests]
    reached = min(len(ids) for each in said.values() for ids in each)
    return {name: hash_of([ids[:reached] for ids in each]) for name, each in said.items()}


def _short(row: TunedRow) -> dict[str, Any]:
    """Return what a row changes; before_us: by what the step runs without it."""
    about = {"kernel": row.kernel, "bucket": row.bucket, "config": dict(row.config)}
    before = row.library_us if row.kernel == "gemv" else row.default_us
    return {**about, "before_us": before, "p50": row.latency_us["p50"]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workbench bench tuning", description=__doc__)
    add = parser.add_argument
    add("--shape", default="llama-8b", help=f"one of {', '.join(SHAPES)}")
    add("--batches", default="1,32", help="how many sequences decode, parted by commas")
    add("--rounds", type=int, default=12, help="turns of each engine")
    add("--steps", type=int, default=12, help="steps in a turn")
    add("--tuned", help="the folder of tuned tables (default: kernels/tuned)")
    add("--rows", help="append the rows to this JSON-lines file")
    return parser
