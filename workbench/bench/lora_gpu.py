"""`workbench bench lora` on a GPU: an 8B shape with random weights and adapters of all projections.

Decode batches without adapters, with one, with as many as requests, with ranks mixed; Zipf traffic
over more adapters than fit on the device; and a hot load. Each case is run beside the base in the
same process, in turns. Adapters have rank rows of their own with equal weights, which cost the
same. The peer's figures are of vLLM 0.25.1 on an H200.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from workbench.bench.gpu import require_gpu
from workbench.bench.gpu_engine import random_model
from workbench.bench.gpu_workloads import SHAPES
from workbench.bench.lora_adapters import RandomAdapters
from workbench.bench.lora_traffic import ON_GPU, ZIPF_ON_GPU, load_rows, row, zipf_rows
from workbench.bench.measure import Row, machine
from workbench.build import build
from workbench.config import EngineConfig
from workbench.engine import Engine
from workbench.sampling_params import SamplingParams

_PROMPT, _OUTPUT = 128, 129
_RANKS = (8, 16, 32, 64)
# Tokens/s of vLLM 0.25.1 on an H200, llama-8b, rank 16 on all projections: none, one, 32 mixed.
_PEER = {1: (198, 143, 143), 32: (5425, 3996, 1639), 256: (18_161, 12_283, 8478)}


@dataclass(frozen=True, slots=True)
class _Case:
    """Requests of one kind: how many, and what the i-th goes through."""

    count: int
    lora: Callable[[int], str | None]


CASES = {
    "b1 one": _Case(1, lambda i: "r16-0"),
    "b32 one": _Case(32, lambda i: "r16-0"),
    "b32 mixed": _Case(32, lambda i: f"r16-{i}"),
    "b32 ranks": _Case(32, lambda i: f"r{_RANKS[i % 4]}-{i // 4}"),
    "b256 mixed": _Case(256, lambda i: f"r16-{i % 32}"),
}


def measure(rank: int, repeats: int, cases: str) -> list[Row]:
    """Print the figures and return the rows."""
    device = require_gpu()
    names = [*CASES, *ZIPF_ON_GPU, "load"] if cases == "all" else cases.split(",")
    model = random_model(SHAPES["llama-8b"], device)
    settings = EngineConfig(
        device=str(device),
        max_batch_tokens=8192,
        max_sequences=256,
        prefix_reuse=False,
        lora_rows=ON_GPU.fitting * rank,
        seed=0,
    )
    engine = build(settings, model=model)
    adapters = RandomAdapters(model)
    where = machine() | {"device": torch.cuda.get_device_name(device), "rank": rank}
    rows = []
    for name in names:
        begin = time.perf_counter()
        if name in ZIPF_ON_GPU:
            traffic = ZIPF_ON_GPU[name]
            rows += zipf_rows(engine, adapters, rank, traffic, repeats, where, name)
        elif name == "load":
            rows += load_rows(engine, adapters, rank, ON_GPU, where)
        else:
            rows += _decode(engine, adapters, name, repeats, where)
        print(f"  ({name}: {time.perf_counter() - begin:.0f} s)", flush=True)
    assert engine.runner.graphs is not None
    print(engine.runner.graphs.summary)
    print(engine.loras.describe())
    engine.close()
    return rows


def _decode(
    engine: Engine, adapters: RandomAdapters, name: str, repeats: int, where: dict[str, Any]
) -> list[Row]:
    case = CASES[name]
    lora = [case.lora(i) for i in range(case.count)]
    for own in dict.fromkeys(lora):
        if own is not None and own not in engine.loras:
            rank = int(own[1:].partition("-")[0])
            engine.loras.load(own, adapters.make(rank))
    seconds: dict[str, list[float]] = {"base": [], name: []}
    given: dict[str, list[str | None]] = {"base": [None] * case.count, name: lora}
    for repeat in range(repeats + 1):
        for which, uses in given.items():
            taken = _run(engine, uses)
            if repeat:
                seconds[which].append(taken)
    base, mixed = (statistics.median(found) for found in seconds.values())
    tokens = case.count * (_OUTPUT - 1)
    peer = ""
    if case.count in _PEER:
        none, one, many = _PEER[case.count]
        theirs = many if "mixed" in name else one
        peer = f"  vLLM {none} -> {theirs} ({theirs / none - 1:+.0%})"
    print(
        f"{name:<12} {tokens / base:>8.0f} -> {tokens / mixed:>8.0f} tok/s "
        f"({base / mixed - 1:+.1%}){peer}",
        flush=True,
    )
    return [row(f"{name}: {which}", [tokens / s for s in seconds[which]], where) for which in given]


def _run(engine: Engine, lora: list[str | None]) -> float:
    """Return the seconds that all requests decode for, from their first token to their last."""
    params = SamplingParams(max_tokens=_OUTPUT, temperature=0, ignore_eos=True)
    names = [engine.add([100 + i] * _PROMPT, params, lora=uses) for i, uses in enumerate(lora)]
    while any(not engine.find(name).num_output_tokens for name in names):
        engine.advance()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    while engine.has_work:
        engine.advance()
    torch.cuda.synchronize()
    taken = time.perf_counter() - begin
    engine.discard(names)
    return taken
