"""`workbench bench cpu`: this engine beside transformers' `generate`, same weights, one process.

Every repeat runs each engine in turn on fresh token ids. The ratio is of median output rates,
against the faster of the peer's dtypes; the ceiling is what reading the weights once per decode
step allows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from workbench.bench.measure import Row, Samples, append_rows, interleave, machine
from workbench.bench.peers import HuggingFace
from workbench.bench.workloads import DESCRIPTIONS, Job, make_workload
from workbench.llm import LLM
from workbench.models import resolve_model
from workbench.sampling_params import SamplingParams

_OURS = "workbench"


def main(argv: list[str] | None = None) -> int:
    """Run the chosen workloads and print the table; return 0."""
    arguments = _parser().parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = resolve_model(arguments.model)
    llm = LLM(
        folder, device="cpu", dtype=arguments.dtype, max_batch_tokens=arguments.max_batch_tokens
    )
    peers = {
        f"transformers {name}": HuggingFace(folder, getattr(torch, name))
        for name in arguments.peer_dtypes.split(",")
    }
    where = {**machine(), "model": arguments.model, "weights": llm.engine.model.num_bytes}
    print(json.dumps(where))
    bandwidth = read_bandwidth()
    ceiling = bandwidth / llm.engine.model.num_bytes
    print(f"memory read {bandwidth / 1e9:.1f} GB/s: at most {ceiling:.0f} decode steps/s\n")
    rows: list[Row] = []
    for name in arguments.workloads.split(","):
        rows += _measure(name, llm, peers, arguments.repeats, where)
    if arguments.rows:
        append_rows(Path(arguments.rows), rows)
    return 0


def _measure(
    name: str, llm: LLM, peers: dict[str, HuggingFace], repeats: int, where: dict[str, Any]
) -> list[Row]:
    def run(engine: Callable[[list[Job]], list[list[int]]], repeat: int) -> list[list[int]]:
        return engine(make_workload(name, repeat))

    candidates = {_OURS: partial(run, partial(run_engine, llm))}
    candidates |= {peer: partial(run, peers[peer].run) for peer in peers}
    samples, results = interleave(candidates, repeats)
    num_output = sum(job.num_output for job in make_workload(name))
    rows = [
        _row(name, engine, samples[engine], num_output, results[engine], where)
        for engine in candidates
    ]
    best = max(row.median for row in rows if row.engine != _OURS)
    print(f"{name}  {DESCRIPTIONS[name]}; {num_output} tokens out")
    for row in rows:
        same = _agreement(results[row.engine], results[_OURS])
        print(
            f"  {row.engine:<24}{row.median:>9.1f} tok/s [{row.low:.1f}..{row.high:.1f}] n={row.n}"
            f"  {row.median / best:>6.2f}x best peer  same tokens {same:.1%}"
            f"  other load {row.foreign_cores:.2f} cores"
        )
    return rows


def run_engine(llm: LLM, jobs: list[Job]) -> list[list[int]]:
    """Run jobs greedily through the engine and return each one's new token ids."""
    params = [
        SamplingParams(max_tokens=job.num_output, temperature=0, ignore_eos=True) for job in jobs
    ]
    outputs = llm.generate([job.prompt for job in jobs], params, progress=False)
    return [output.outputs[0].token_ids for output in outputs]


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
    fast, slow = samples.spread
    digest = hashlib.sha256(json.dumps(result).encode()).hexdigest()[:16]
    return Row(
        bench="cpu",
        case=case,
        engine=engine,
        unit="output tokens/s",
        median=tokens / samples.median,
        low=tokens / slow,
        high=tokens / fast,
        n=len(samples.seconds),
        foreign_cores=round(max(samples.foreign_cores), 2),
        output_hash=digest,
        where=where,
    )


def _agreement(result: list[list[int]], ours: list[list[int]]) -> float:
    pairs = [
        (a, b)
        for one, other in zip(result, ours, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workbench bench cpu", description=__doc__)
    add = parser.add_argument
    add("--model", default="tinypy", help="embedded model, checkpoint folder or hub id")
    add("--workloads", default=",".join(DESCRIPTIONS))
    add("--repeats", type=int, default=5)
    add("--dtype", default="auto", help="of this engine: auto, float32, bfloat16")
    add("--peer-dtypes", default="float32,bfloat16")
    add("--max-batch-tokens", type=int, default=2048)
    add("--threads", type=int, help="torch threads (default: all cores)")
    add("--rows", help="append the rows to this JSON-lines file")
    return parser
