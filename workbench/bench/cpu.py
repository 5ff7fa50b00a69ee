"""`workbench bench cpu`: this engine beside transformers' `generate`, same weights, one process.

Every repeat runs each engine in turn on fresh token ids. The ratio is of median output rates,
against the faster of the peer's dtypes; the ceiling is what reading the weights once per decode
step allows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from workbench.bench.measure import (
    Figures,
    Row,
    Samples,
    append_rows,
    hash_of,
    interleave,
    machine,
)
from workbench.bench.peers import HuggingFace
from workbench.bench.shapes import SHAPES, write_random_checkpoint
from workbench.bench.workloads import DESCRIPTIONS, Job, make_workload, run_jobs
from workbench.errors import ConfigError
from workbench.llm import LLM
from workbench.models import resolve_model

_OURS = "workbench"


def main(argv: list[str] | None = None) -> int:
    """Run the chosen workloads and print the table; return 0."""
    arguments = _parser().parse_args(argv)
    workloads = arguments.workloads.split(",")
    chosen = peer_dtypes(arguments.peer_dtypes, workloads)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with ExitStack() as stack:
        if arguments.model in SHAPES:
            made = stack.enter_context(TemporaryDirectory())
            folder = write_random_checkpoint(arguments.model, Path(made))
        else:
            folder = resolve_model(arguments.model)
        settings = {"dtype": arguments.dtype, "backend": arguments.backend}
        llm = LLM(folder, device="cpu", max_batch_tokens=arguments.max_batch_tokens, **settings)
        names = dict.fromkeys(dtype for dtypes in chosen.values() for dtype in dtypes)
        peers = {name: HuggingFace(folder, getattr(torch, name)) for name in names}
    where = _where(llm, arguments.model)
    for name in workloads:
        wanted = {f"transformers {dtype}": peers[dtype] for dtype in chosen[name]}
        rows = _measure(name, llm, wanted, arguments.repeats, where)
        if arguments.rows:
            append_rows(Path(arguments.rows), rows)
    return 0


def peer_dtypes(text: str, workloads: list[str]) -> dict[str, list[str]]:
    """Return each workload's dtypes of the peer from `bfloat16,W1=float32`: for all, or for one.

    An empty text means no peer. Raises `ConfigError` for an unknown dtype or workload.
    """
    chosen: dict[str, list[str]] = {name: [] for name in workloads}
    for entry in filter(None, text.split(",")):
        workload, _, dtype = entry.rpartition("=")
        if dtype not in ("float32", "bfloat16") or workload not in ("", *DESCRIPTIONS):
            fix = "Write DTYPE or WORKLOAD=DTYPE with float32 or bfloat16, parted by commas."
            raise ConfigError("--peer-dtypes", entry, "is not understood", fix)
        for name in workloads:
            if workload in ("", name) and dtype not in chosen[name]:
                chosen[name].append(dtype)
    return chosen


def _where(llm: LLM, model: str) -> dict[str, Any]:
    """Print and return what is measured where, and the ceiling that memory sets."""
    engine = llm.engine
    untied = not engine.model.config.tied_head
    skipped = engine.model.embedding.weight.nbytes if untied else 0  # read by row, not as a whole
    weights = engine.model.num_bytes - skipped
    facts = {"model": model, "dtype": engine.model.config.dtype, "weights": weights}
    where = {**machine(), **facts, "backend": engine.runner.backend.name}
    print(json.dumps(where))
    bandwidth = read_bandwidth()
    print(f"memory read {bandwidth / 1e9:.1f} GB/s: at most {bandwidth / weights:.0f} steps/s\n")
    return where


def _measure(
    name: str, llm: LLM, peers: dict[str, HuggingFace], repeats: int, where: dict[str, Any]
) -> list[Row]:
    def run(engine: Callable[[list[Job]], list[list[int]]], repeat: int) -> list[list[int]]:
        return engine(make_workload(name, repeat))

    candidates = {_OURS: partial(run, partial(run_jobs, llm.engine))}
    candidates |= {peer: partial(run, peers[peer].run) for peer in peers}
    samples, results = interleave(
        candidates, repeats, lambda line: print(f"  {name} {line}", flush=True)
    )
    num_output = sum(job.num_output for job in make_workload(name))
    rows = [
        _row(name, engine, samples[engine], num_output, results[engine], where)
        for engine in candidates
    ]
    best = max((row.median for row in rows if row.engine != _OURS), default=None)
    print(f"{name}  {DESCRIPTIONS[name]}; {num_output} tokens out")
    for row in rows:
        same = agreement(results[row.engine], results[_OURS])
        ratio = "" if best is None else f"  {row.median / best:>6.2f}x best peer"
        print(
            f"  {row.engine:<24}{row.median:>9.1f} tok/s [{row.low:.1f}..{row.high:.1f}] n={row.n}"
            f"{ratio}  same tokens {same:.1%}  other load {row.foreign_cores:.2f} cores",
            flush=True,
        )
    return rows


def read_bandwidth(num_bytes: int = 1 << 28, repeats: int = 7) -> float:
    """Return how fast all threads read memory, in bytes/s: the best of a few sums over 256 MiB."""
    data = torch.ones(num_bytes // 4)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - start)
    return num_bytes / best


def _row(
    case: str,
    engine: str,
    samples: Samples,
    tokens: int,
    result: list[list[int]],
    where: dict[str, Any],
) -> Row:
    return Row(
        *("cpu", case, engine, "output tokens/s"),
        *Figures.of([tokens / seconds for seconds in samples.seconds]),
        foreign_cores=round(max(samples.foreign_cores), 2),
        output_hash=hash_of(result),
        where=where,
    )


def agreement(result: list[list[int]], ours: list[list[int]]) -> float:
    """Return which part of two results' tokens is equal, place by place."""
    pairs = [
        (a, b)
        for one, other in zip(result, ours, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workbench bench cpu", description=__doc__)
    add = parser.add_argument
    shapes = "; ".join(f"{name}: {shape.description}" for name, shape in SHAPES.items())
    own = f"a shape with random weights ({shapes})"
    add("--model", default="tinypy", help=f"embedded model, checkpoint folder, hub id, or {own}")
    add("--workloads", default=",".join(DESCRIPTIONS))
    add("--repeats", type=int, default=5)
    add("--dtype", default="auto", help="of this engine: auto, float32, bfloat16")
    add("--backend", default="auto", help="of this engine: auto, native, sdpa, reference")
    add(
        "--peer-dtypes",
        default="bfloat16,W1=float32,W2=float32",
        help="of transformers: DTYPE for all workloads or WORKLOAD=DTYPE for one; '' for no peer",
    )
    add("--max-batch-tokens", type=int, default=2048)
    add("--threads", type=int, help="torch threads (default: all cores)")
    add("--rows", help="append the rows to this JSON-lines file")
    return parser
