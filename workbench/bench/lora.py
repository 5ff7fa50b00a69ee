"""`workbench bench lora`: what adapters cost. On a CPU the embedded model, 16 requests over four
adapters of rank 16, beside the base and beside PEFT's own mixed batch; on a GPU see `lora_gpu`.
Zipf traffic and hot loads (`--cases zipf,load`) are on both, see `lora_traffic`; what a scheduler
makes of the GPU's traffic is counted on a CPU (`--cases schedule`), see `lora_schedule`.

Engines take turns, same weights, same adapters, one process. PEFT's batch is `generate` with
`adapter_names`, which PEFT takes for one adapter each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from workbench.bench.cpu import agreement
from workbench.bench.lora_adapters import RandomAdapters
from workbench.bench.lora_schedule import schedule_rows
from workbench.bench.lora_traffic import ON_CPU, ZIPF_ON_GPU, load_rows, zipf_rows
from workbench.bench.measure import Row, Samples, append_rows, interleave, machine
from workbench.bench.peers import HuggingFace
from workbench.bench.workloads import Job, make_workload
from workbench.errors import ConfigError, MissingExtra
from workbench.llm import LLM
from workbench.models import resolve_model
from workbench.sampling_params import SamplingParams

_REQUESTS, _ADAPTERS = 16, 4
_BASE, _MIXED, _PEFT = "base", "four adapters", "PEFT, four adapters"
Run = Callable[[int], list[list[int]]]


def main(argv: list[str] | None = None) -> int:
    """Print the figures and write the rows; return 0."""
    arguments = _parser().parse_args(argv)
    if arguments.device == "cuda" or (arguments.device == "auto" and torch.cuda.is_available()):
        from workbench.bench.lora_gpu import measure

        rows = measure(arguments.rank, arguments.repeats, arguments.cases)
    else:
        rows = _measure(arguments)
    if arguments.rows:
        append_rows(Path(arguments.rows), rows)
    return 0


def _measure(arguments: argparse.Namespace) -> list[Row]:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.cases != "all":
        return _traffic(arguments)
    llm = LLM(arguments.model, device="cpu", dtype=arguments.dtype)
    adapters = RandomAdapters(llm.engine.model)
    names = [f"a{number}" for number in range(_ADAPTERS)]
    with tempfile.TemporaryDirectory() as made:
        folders = [Path(made, name) for name in names]
        for number, (name, folder) in enumerate(zip(names, folders, strict=True)):
            llm.loras.load(name, adapters.make(arguments.rank, number).to_peft(folder))
        peer = _peer(resolve_model(arguments.model), folders, arguments.peer_dtype)
    mixed: list[str | None] = [names[i % _ADAPTERS] for i in range(_REQUESTS)]
    candidates: dict[str, Run] = {
        _BASE: partial(_run, llm, [None] * _REQUESTS),
        _MIXED: partial(_run, llm, mixed),
        "two adapters and the base": partial(
            _run, llm, [name if i % 2 else None for i, name in enumerate(mixed)]
        ),
        _PEFT: lambda repeat: peer(make_workload("W2", repeat), mixed),
    }
    where = machine() | {"model": arguments.model, "rank": arguments.rank}
    where |= {"dtype": llm.engine.model.config.dtype, "peer dtype": arguments.peer_dtype}
    print(json.dumps(where))
    samples, results = interleave(candidates, arguments.repeats, lambda line: print(f"  {line}"))
    tokens = sum(job.num_output for job in make_workload("W2"))
    rates = {name: tokens / found.median for name, found in samples.items()}
    for name, rate in rates.items():
        print(f"{name:<28}{rate:>9.1f} tok/s  {rate / rates[_BASE]:6.1%} of the base")
    same = agreement(results[_MIXED], results[_PEFT])
    print(f"four adapters: {rates[_MIXED] / rates[_PEFT]:.1f}x PEFT's, same tokens {same:.1%}")
    assert llm.engine.runner.tapes is not None
    print(f"tapes: {llm.engine.runner.tapes.summary}")
    return [_row(name, samples[name], tokens, where) for name in candidates]


def _traffic(arguments: argparse.Namespace) -> list[Row]:
    """Adapters that come and go, in an engine with fewer rank rows than these have."""
    names, rank = arguments.cases.split(","), arguments.rank
    if unknown := set(names) - {"zipf", "load", "schedule"}:
        fix = "Take zipf, load, schedule or all."
        raise ConfigError("cases", ",".join(unknown), "not on a CPU", fix)
    rows = []
    if "schedule" in names:
        rows += schedule_rows(ZIPF_ON_GPU, arguments.repeats, machine())
    if names == ["schedule"]:
        return rows
    settings = {"dtype": arguments.dtype, "lora_rows": ON_CPU.fitting * rank, "seed": 0}
    llm = LLM(arguments.model, device="cpu", prefix_reuse=False, **settings)
    adapters, where = RandomAdapters(llm.engine.model), machine() | {"rank": rank}
    if "zipf" in names:
        rows += zipf_rows(llm.engine, adapters, rank, ON_CPU, arguments.repeats, where)
    if "load" in names:
        rows += load_rows(llm.engine, adapters, rank, ON_CPU, where)
    return rows


def _run(llm: LLM, lora: list[str | None], repeat: int) -> list[list[int]]:
    jobs = make_workload("W2", repeat)
    params = [SamplingParams(max_tokens=j.num_output, temperature=0, ignore_eos=True) for j in jobs]
    outputs = llm.generate([job.prompt for job in jobs], params, lora=lora, progress=False)
    return [output.outputs[0].token_ids for output in outputs]


def _peer(
    base: Path, folders: list[Path], dtype: str
) -> Callable[[list[Job], list[str | None]], list[list[int]]]:
    """Return PEFT's mixed batch over the same adapters."""
    try:
        import peft
    except ImportError as error:
        raise MissingExtra("bench lora", "peft", "train") from error
    ours = HuggingFace(base, getattr(torch, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, *others = folders
        model = peft.PeftModel.from_pretrained(ours.model, str(first), adapter_name=first.name)
        for folder in others:
            model.load_adapter(str(folder), adapter_name=folder.name)
    ours.model = model.to(getattr(torch, dtype)).eval()

    def run(jobs: list[Job], names: list[str | None]) -> list[list[int]]:
        return ours.run(jobs, adapter_names=names)

    return run


def _row(case: str, samples: Samples, tokens: int, where: dict[str, object]) -> Row:
    fast, slow = samples.spread
    return Row(
        bench="lora",
        case=case,
        engine="peft" if case == _PEFT else "workbench",
        unit="output tokens/s",
        median=tokens / samples.median,
        low=tokens / slow,
        high=tokens / fast,
        n=len(samples.seconds),
        foreign_cores=round(max(samples.foreign_cores), 2),
        where=where,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workbench bench lora", description=__doc__)
    add = parser.add_argument
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--model", default="tinypy", help="on a CPU: embedded model, checkpoint folder or hub id")
    add("--dtype", default="auto", help="of this engine on a CPU")
    add("--peer-dtype", default="bfloat16", help="of PEFT: float32 or bfloat16")
    add("--rank", type=int, default=16)
    add("--repeats", type=int, default=5)
    add("--threads", type=int, help="torch threads (default: all cores)")
    add(
        "--cases",
        default="all",
        help="names parted by commas, or all; on a CPU zipf, load, schedule",
    )
    add("--rows", help="append the rows to this JSON-lines file")
    return parser
