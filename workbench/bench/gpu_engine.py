"""`workbench bench gpu`: the engine on a GPU, random bfloat16 weights, beside ceilings and a peer.

Each workload runs once to warm up and then a few times; its floor is what the least work would take
at the copy bandwidth and matrix rate measured in the same run. Decode steps are also split into the
GPU's busy time and the rest. Prefix reuse is off, as every repeat brings the same prompts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.bench.gpu import Ceilings, eager_timing, measure_ceilings, require_gpu
from workbench.bench.gpu_workloads import PEER, SHAPES, WORKLOADS, Work, get_shape, make_jobs
from workbench.bench.measure import Figures, Row, append_rows, hash_of, machine
from workbench.bench.workloads import Job, run_jobs
from workbench.build import build
from workbench.config import EngineConfig, ModelConfig
from workbench.engine import Engine
from workbench.memory_plan import plan_memory
from workbench.models import DecoderLM, LlamaForCausalLM
from workbench.sampling_params import SamplingParams

_OVERHEAD_ROWS = (1, 32, 256)
_OVERHEAD_STEPS = 60


@dataclass(frozen=True, slots=True)
class _Run:
    """What all workloads of a run share."""

    engine: Engine
    shape: str
    ceilings: Ceilings
    where: dict[str, Any]
    repeats: int


def main(argv: list[str] | None = None) -> int:
    """Print the table and write the rows; return 0."""
    arguments = _parser().parse_args(argv)
    names = list(WORKLOADS) if arguments.workload == "all" else arguments.workload.split(",")
    shape = get_shape(arguments.shape)
    jobs = make_jobs(names)
    device = require_gpu()
    ceilings = measure_ceilings(device)
    named = torch.cuda.get_device_name(device)
    versions = {"device": named, "cuda": torch.version.cuda, "shape": arguments.shape}
    print(json.dumps(machine() | versions))
    print(
        f"copy {ceilings.copy / 1e12:.2f} TB/s, read {ceilings.read / 1e12:.2f} TB/s, "
        f"bf16 product {ceilings.gemm / 1e12:.0f} TFLOP/s"
    )
    engine, start_up = _start(shape, arguments, device)
    parts = {name: str(value) for name, value in engine.runner.describe().items()}
    where = machine() | parts | versions | {"start-up": start_up}
    run = _Run(engine, arguments.shape, ceilings, where, arguments.repeats)
    rows = [_measure(run, name, jobs[name]) for name in names]
    if arguments.overhead:
        rows += [_overhead(run, count) for count in _OVERHEAD_ROWS]
    print(engine.runner.describe()["mode"])
    print(f"overlap: {engine.overlap.describe()}")
    if engine.runner.graphs is not None:
        print(engine.runner.graphs.describe())
    if arguments.rows:
        append_rows(Path(arguments.rows), rows)
    engine.close()
    return 0


def random_model(config: ModelConfig, device: torch.device) -> DecoderLM:
    """Return a model of random bfloat16 weights, made on the device."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device=device)
    model.tie_head()
    model.init_weights(std=0.02)
    return model.requires_grad_(False)


def _start(
    config: ModelConfig, arguments: argparse.Namespace, device: torch.device
) -> tuple[Engine, dict[str, float]]:
    """Return a fresh engine after its first two tokens, and the seconds to each point."""
    begin = time.perf_counter()
    model = random_model(config, device)
    torch.cuda.synchronize()
    marks = {"weights": time.perf_counter() - begin}
    settings = EngineConfig(
        device=str(device),
        backend=arguments.backend,
        cuda_graphs=not arguments.eager and "auto",
        overlap=not arguments.no_overlap and "auto",
        batch_invariant=arguments.batch_invariant,
        max_batch_tokens=arguments.max_batch_tokens,
        max_sequences=arguments.max_sequences,
        num_blocks=arguments.num_blocks,
        prefix_reuse=False,
        seed=0,
    )
    print(plan_memory(model, settings))
    engine = build(settings, model=model)
    torch.cuda.synchronize()
    marks["engine"] = time.perf_counter() - begin
    name = engine.add(list(range(100, 228)), SamplingParams(max_tokens=2, temperature=0))
    engine.step()
    marks["first token"] = time.perf_counter() - begin
    engine.run()
    engine.forget(name)
    marks["first decode"] = time.perf_counter() - begin
    print("start-up, s: " + ", ".join(f"{name} {value:.2f}" for name, value in marks.items()))
    return engine, {name: round(value, 2) for name, value in marks.items()}


def _measure(run: _Run, name: str, jobs: list[Job]) -> Row:
    seconds: list[float] = []
    torch.cuda.reset_peak_memory_stats()
    prepared = 0
    for _ in range(run.repeats + 1):
        if len(seconds) == 1:
            prepared = run.engine.runner.preparations
        begin = time.perf_counter()
        result = run_jobs(run.engine, jobs)
        seconds.append(time.perf_counter() - begin)
    warm_up, *seconds = seconds
    workload = WORKLOADS[name]
    if workload.counted == "in":
        tokens = sum(len(job.prompt) for job in jobs)
    else:
        tokens = sum(job.num_output for job in jobs)
    median = statistics.median(seconds)
    limit = run.engine.scheduler.config.max_sequences
    floor = floor_seconds(Work.of(jobs, run.engine.model.config, limit), run.ceilings)
    peer = PEER.get((run.where["device"], run.shape), {}).get(name)
    peak = torch.cuda.max_memory_allocated()
    late = run.engine.runner.preparations - prepared
    beside = "" if peer is None else f"  {tokens / median / peer:.2f}x vLLM ({peer:.0f})"
    print(
        f"{name:<16} {tokens / median:>9.1f} tok/s {workload.counted:<3} {median:7.3f} s "
        f"[{min(seconds):.3f}..{max(seconds):.3f}] n={len(seconds)} warm-up {warm_up:.2f} s  "
        f"floor {floor:.3f} s: {floor / median:.0%}{beside}  peak {peak / 1e9:.1f} GB"
        + (f"  {late} captures or compiles came late" if late else ""),
        flush=True,
    )
    facts = {"floor": floor, "peer": peer, "peak bytes": peak, "warm-up": warm_up, "late": late}
    return Row(
        *("gpu", name, "workbench", f"{workload.counted} tokens/s"),
        *Figures.of([tokens / each for each in seconds]),
        output_hash=hash_of(result),
        where=run.where | facts,
    )


def floor_seconds(work: Work, ceilings: Ceilings) -> float:
    """Return the least time of some work: prompts at the matrix rate, decodes at the bound one."""
    bandwidth = max(ceilings.copy, ceilings.read)
    decode = max(work.decode_bytes / bandwidth, work.decode_flops / ceilings.gemm)
    return work.prefill_flops / ceilings.gemm + decode


def _overhead(run: _Run, count: int) -> Row:
    """Split a decode step of `count` sequences into the GPU's busy time and what is left."""
    engine = run.engine
    params = SamplingParams(max_tokens=_OVERHEAD_STEPS + 40, temperature=0, ignore_eos=True)
    names = [engine.add([100 + i] * 128, params) for i in range(count)]
    while any(engine.find(name).num_output_tokens < 8 for name in names):
        engine.advance()
    walls, parts, busy = [], [], 0.0
    for number in range(_OVERHEAD_STEPS):
        if number == _OVERHEAD_STEPS // 2:  # contexts are then of their average length
            busy = _busy_us(engine, count)
        begin = time.perf_counter()
        parts.append(engine.advance().seconds)
        walls.append(1e6 * (time.perf_counter() - begin))
    engine.overlap.drop()
    engine.discard(names)
    wall = statistics.median(walls)
    split = {part: 1e6 * statistics.median(p[part] for p in parts) for part in parts[0]}
    detail = ", ".join(f"{part} {value:.0f}" for part, value in split.items())
    print(
        f"step of {count:>3} decodes: {wall:.0f} µs, GPU busy {busy:.0f}, outside "
        f"{wall - busy:.0f} µs  (host: {detail})",
        flush=True,
    )
    return Row(
        *("gpu", f"outside_b{count}", "workbench", "µs a decode step beside the GPU's busy time"),
        *Figures.of([each - busy for each in walls]),
        where=run.where | {"busy": busy, "wall": wall} | split,
    )


def _busy_us(engine: Engine, count: int) -> float:
    """Return the GPU's time for the latest step's pass, logits and argmax, back to back."""
    graphs = engine.runner.graphs
    if graphs is None or graphs.latest is None:
        return float("nan")
    latest = graphs.latest

    def once() -> None:
        latest.graph.replay()
        engine.model.logits(latest.hidden[:count], latest.ctx).argmax(dim=-1)

    with torch.inference_mode():
        return eager_timing([once] * 4, 0.3).p50


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workbench bench gpu", description=__doc__)
    add = parser.add_argument
    add("--shape", default="llama-8b", help=f"one of {', '.join(SHAPES)}")
    known = "; ".join(f"{name}: {w.description}" for name, w in WORKLOADS.items())
    add("--workload", default="all", help=f"names parted by commas, or all ({known})")
    add("--repeats", type=int, default=3)
    add("--backend", default="auto")
    add("--eager", action="store_true", help="without CUDA graphs")
    add("--batch-invariant", action="store_true", help="the same bits in any batch, and its cost")
    add("--no-overlap", action="store_true", help="with the plain loop")
    add("--max-sequences", type=int, default=512)
    add("--max-batch-tokens", type=int, default=16_384)
    add("--num-blocks", type=int, help="blocks of the cache (default: most of the free memory)")
    add("--no-overhead", dest="overhead", action="store_false", help="skip the step's split")
    add("--rows", help="append the rows to this JSON-lines file")
    return parser
