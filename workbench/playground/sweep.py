"""`Sweep`: the trials of a kernel's space, in a file that grows line by line.

The first line says what was swept, where and by which versions; then comes a line for each trial,
failures too, and after a finished search a line of finals. A run that was cut off loses nothing: it
goes on where it stopped, and a file of another kernel or machine is refused. `datasets/sweeps/`
holds recorded ones.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError
from workbench.playground.subject import Subject, Trial, config_key

FORMAT = 1
SUFFIX = ".jsonl"
# What must be equal for a sweep to go on.
_IDENTITY = (
    *("format", "kernel", "case", "dtype", "source_hash", "bucket"),
    *("device", "driver", "torch", "triton", "compiled_for"),
)


@dataclass(slots=True)
class Sweep:
    """header: what was swept and where. trials: by `config_key`. finals: the winner's re-timing."""

    header: dict[str, Any]
    trials: dict[str, Trial] = field(default_factory=dict)
    finals: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @property
    def subject(self) -> Subject:
        """What was swept."""
        return Subject(*(self.header[name] for name in ("kernel", "case", "dtype", "seed")))

    @property
    def timed(self) -> list[Trial]:
        """The trials that were right and timed, fastest first."""
        return sorted(
            (trial for trial in self.trials.values() if trial.ok and trial.p50 is not None),
            key=lambda trial: trial.p50 or 0.0,
        )

    def add(self, trial: Trial) -> None:
        """Keep a trial, and write it down at once."""
        self.trials[config_key(trial.config)] = trial
        self._write(asdict(trial))

    def finish(self, finals: dict[str, Any]) -> None:
        """Keep the finals, and write them down."""
        self.finals = finals
        self._write({"finals": finals})

    def _write(self, record: Mapping[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(record) + "\n")


def header_of(subject: Subject, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sweep's first line from what a worker said of the case and the machine."""
    about = {name: getattr(subject, name) for name in ("kernel", "case", "dtype", "seed")}
    rest = {k: v for k, v in facts.items() if k != "configs"}
    when = time.strftime("%Y-%m-%d", time.gmtime())
    return {"format": FORMAT, **about, "num_configs": len(facts["configs"]), "when": when, **rest}


def open_sweep(path: Path, header: dict[str, Any]) -> Sweep:
    """Go on with a sweep file, or begin it; `ConfigError` if it is of something else."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return Sweep(header, path=path)
    found = load_sweep(path)
    for name in _IDENTITY:
        if found.header.get(name) != header.get(name):
            raise ConfigError(
                "sweep", str(path), f"its {name} is {found.header.get(name)!r}, "
                f"this one's {header.get(name)!r}",
                "Delete it, or give another folder.",
            )  # fmt: skip
    whole = path.read_bytes().rpartition(b"\n")
    os.truncate(path, len(whole[0]) + len(whole[1]))  # the next line is not glued to one cut off
    return found


def load_sweep(path: Path) -> Sweep:
    """Read a sweep file; raise `ConfigError` for what is none.

    A last line without its end is passed over: another process may be writing it.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        sweep = Sweep(json.loads(lines[0]), path=path)
        if sweep.header["format"] != FORMAT:
            raise ValueError(f"format {sweep.header['format']}, not {FORMAT}")
        for line in lines[1:-1]:  # a whole line ends with a newline
            record = json.loads(line)
            if "finals" in record:
                sweep.finals = record["finals"]
            else:
                trial = Trial(**record)
                sweep.trials[config_key(trial.config)] = trial
    except (ValueError, KeyError, TypeError) as error:
        fix = "Delete it and sweep again."
        raise ConfigError("sweep", str(path), f"not a sweep file ({error})", fix) from error
    return sweep


def sweep_name(subject: Subject) -> str:
    """Return a sweep's file name: `paged_decode--llama-8b_64x8k--bfloat16.jsonl`."""
    case = "".join(c if c.isalnum() or c in "-." else "_" for c in subject.case)
    return f"{subject.kernel}--{case}--{subject.dtype}{SUFFIX}"
