"""`workbench bench kernels`: each kernel checked, then timed beside its ceiling and the library.

Needs a CUDA GPU. A line per case: the time in a CUDA graph (median, p10..p90) and eagerly, the
rate, the share of what this GPU just reached (copy bandwidth, matrix product), the library's time.
Configurations are those of `kernels/tuned/<gpu>.json`, which `workbench tune` writes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.bench.gpu import (
    Ceilings,
    Timing,
    driver_version,
    eager_timing,
    graph_timing,
    measure_ceilings,
    num_rotations,
    require_gpu,
)
from workbench.bench.measure import Row, append_rows, machine

if TYPE_CHECKING:
    from workbench.kernels.spec import Inputs, KernelSpec
    from workbench.kernels.tuning import TunedTable


@dataclass(frozen=True, slots=True)
class _Bench:
    """What all cases of a run share."""

    dtype: torch.dtype
    seed: int
    ceilings: Ceilings
    table: TunedTable
    where: dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit code 1 if a kernel is wrong."""
    arguments = _parser().parse_args(argv)
    device = require_gpu()
    import triton

    from workbench.kernels.tuning import FOLDER, TunedTable

    chosen = _chosen(arguments)
    named = torch.cuda.get_device_name(device)
    versions = {"triton": triton.__version__, "driver": driver_version()}
    where = machine() | {"device": named, **versions}
    print(json.dumps(where))
    ceilings = measure_ceilings(device)
    print(
        f"copy {ceilings.copy / 1e12:.2f} TB/s, read {ceilings.read / 1e12:.2f} TB/s, "
        f"bf16 product {ceilings.gemm / 1e12:.0f} TFLOP/s\n"
    )
    tables = Path(arguments.tuned) if arguments.tuned else FOLDER
    table = TunedTable.load(named, tables)
    bench = _Bench(getattr(torch, arguments.dtype), arguments.seed, ceilings, table, where)
    rows, wrong = [], 0
    for spec, case in chosen:
        rotation = _rotation(spec, case, bench, device)
        measured = _measure(spec, case, rotation, bench)
        rows += measured
        wrong += not measured
        del rotation
        torch.cuda.empty_cache()
    if arguments.rows:
        append_rows(Path(arguments.rows), rows)
    return 1 if wrong else 0


def _chosen(arguments: argparse.Namespace) -> list[tuple[KernelSpec, str]]:
    """Return the cases asked for: one by name, the quick ones, or all that are not small."""
    from workbench.kernels.registry import SPECS, get_spec

    names = arguments.kernel.split(",") if arguments.kernel else list(SPECS)
    major, minor = torch.cuda.get_device_capability()
    return [
        (spec, name)
        for spec in map(get_spec, names)
        for name, case in spec.cases.items()
        if case.min_capability <= 10 * major + minor
        and (
            name == arguments.case
            if arguments.case
            else (case.quick if arguments.quick else not case.small)
        )
    ]


def _rotation(spec: KernelSpec, case: str, bench: _Bench, device: torch.device) -> list[Inputs]:
    """Return inputs of different seeds that together exceed the L2 cache."""
    first = spec.inputs(case, bench.dtype, device, bench.seed)
    seeds = range(1, num_rotations(spec.num_bytes(**first), device))
    return [first, *(spec.inputs(case, bench.dtype, device, bench.seed + i) for i in seeds)]


def _measure(spec: KernelSpec, case: str, rotation: Sequence[Inputs], bench: _Bench) -> list[Row]:
    """Check one case, then time it; print its line and return its rows, none if it is wrong."""
    from workbench.kernels.accuracy import accuracy

    inputs = rotation[0]
    config = bench.table.config(spec, bench.dtype, inputs)
    outputs = spec.plan(**inputs, config=config).run()
    checked = accuracy(spec, bench.dtype, outputs, spec.reference(**inputs))
    if not checked.ok:
        print(f"{spec.name:<18}{case:<30} WRONG by {checked.max_err:.2e} ({checked.share:.1f}x)")
        return []
    plans = [spec.plan(**each, config=config) for each in rotation]
    calls = [partial(spec, **each, config=config) for each in rotation]
    timings = {
        "graph": graph_timing([plan.run for plan in plans], 0.2),
        "eager": eager_timing(calls, 0.1),
    }
    library = _library(spec, rotation)
    if library is not None:
        timings["library"] = library
    print(_line(spec, case, inputs, timings, bench.ceilings, config is not None, checked.max_err))
    return [_row(spec.name, case, engine, t, bench.where) for engine, t in timings.items()]


def _line(
    spec: KernelSpec,
    case: str,
    inputs: Inputs,
    timings: dict[str, Timing],
    ceilings: Ceilings,
    tuned: bool,
    max_err: float,
) -> str:
    """Return a case's line of the table."""
    ours, num_bytes, flops = timings["graph"], spec.num_bytes(**inputs), spec.flops(**inputs)
    rate = f"{num_bytes / ours.p50 / 1e6:.2f} TB/s"
    if flops / ceilings.gemm > num_bytes / ceilings.copy:
        rate = f"{flops / ours.p50 / 1e6:.0f} TFLOP/s"
    share = ceilings.floor_us(num_bytes, flops) / ours.p50
    line = (
        f"{spec.name:<18}{case:<30}{ours.p50:>9.1f} us [{ours.p10:.1f}..{ours.p90:.1f}]"
        f"{rate:>13}{share:>5.0%} of ceiling  eager {timings['eager'].p50:.1f} us"
    )
    if "library" in timings:
        peer = timings["library"].p50
        line += f"  library {peer:.1f} us ({peer / ours.p50:.2f}x)"
    return f"{line}  error {max_err:.0e}  {'tuned' if tuned else 'default'}"


def _library(spec: KernelSpec, rotation: Sequence[Inputs]) -> Timing | None:
    """Time the library's way to the same outputs in a graph; None where there is none."""
    baseline = spec.baseline
    if baseline is None or baseline(**rotation[0]) is None:
        return None
    return graph_timing([partial(baseline, **each) for each in rotation], 0.2)


def _row(kernel: str, case: str, engine: str, timing: Timing, where: dict[str, Any]) -> Row:
    return Row(
        bench="kernels",
        case=f"{kernel} / {case}",
        engine=engine,
        unit="us",
        median=timing.p50,
        low=timing.p10,
        high=timing.p90,
        n=timing.n,
        where=where,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workbench bench kernels", description=__doc__)
    add = parser.add_argument
    add("--kernel", help="comma-separated (default: all)")
    add("--case", help="the cases of this name only")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    add("--quick", action="store_true", help="only the cases that matter most")
    add("--tuned", help="the folder of tuned tables (default: kernels/tuned)")
    add("--seed", type=int, default=0)
    add("--rows", help="append the rows to this JSON-lines file")
    return parser
