"""Rows of `workbench bench gpu`, recorded or just measured, as one table beside floors and a peer.

`datasets/gpu` holds rows that were recorded on GPUs; a notebook shows them where there is none, and
what `measure` finds where there is one. Either way they are the rows that the program writes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.bench.gpu_workloads import PEER, WORKLOADS, make_jobs
from workbench.bench.measure import Row
from workbench.errors import InvalidValue
from workbench.places import DATASETS, repository_root


def recorded(name: str = "h200", root: Path | None = None) -> list[Row]:
    """Return the rows of `datasets/gpu/<name>.jsonl`, in their order.

    root: the folder that holds `datasets`; by default this package's repository. Raises
    `InvalidValue` if there is no such file.
    """
    folder = (root or repository_root()) / DATASETS / "gpu"
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.jsonl"))) or "none"
        raise InvalidValue("name", name, f"no rows at {path}", f"There are: {known}.")
    return read(path)


def read(path: Path) -> list[Row]:
    """Return the rows of a JSON-lines file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Row(**json.loads(line)) for line in lines if line]


def measure(*options: str) -> list[Row]:
    """Run `workbench bench gpu` with these options here and return its rows; needs a CUDA GPU."""
    from workbench.bench import gpu_engine

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        gpu_engine.main([*options, "--rows", str(path)])
        return read(path)


def table(rows: list[Row]) -> pd.DataFrame:
    """Return a line for each workload, the latest row of each; tokens/s of the counted kind.

    floor: what the least work would take at the ceilings of the same run; `of floor` and
    `of peer` are shares of the two, NaN where there is none.
    """
    latest = {row.case: row for row in rows if row.bench == "gpu" and row.case in WORKLOADS}
    jobs, lines = make_jobs(list(latest)), []
    for name, row in latest.items():
        counted, shape = WORKLOADS[name].counted, row.where.get("shape", "llama-8b")
        number = sum(len(j.prompt) if counted == "in" else j.num_output for j in jobs[name])
        floor = number / row.where["floor"] if row.where.get("floor") else float("nan")
        peer = PEER.get((row.where["device"], shape), {}).get(name, float("nan"))
        lines.append(
            {
                "workload": name,
                "counted": counted,
                "tokens/s": row.median,
                "low": row.low,
                "high": row.high,
                "n": row.n,
                "floor": floor,
                "peer": peer,
                "of floor": row.median / floor,
                "of peer": row.median / peer,
            }
        )
    order = {name: place for place, name in enumerate(WORKLOADS)}
    lines.sort(key=lambda line: order[str(line["workload"])])
    return pd.DataFrame(lines).set_index("workload")


def provenance(rows: list[Row]) -> dict[str, Any]:
    """Return what the rows' tables must be read with: device, versions, dates, commits."""
    names = ("device", "torch", "cuda", "shape", "when", "commit", "backend")
    found = {
        name: sorted({str(row.where[name]) for row in rows if name in row.where}) for name in names
    }
    return {name: ", ".join(values) for name, values in found.items() if values}
