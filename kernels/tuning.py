"""Tuned configurations of one GPU: read from `kernels/tuned/<gpu>.json`, exact or not at all.

A row is used only if device, kernel source, dtype and bucket all match; else the kernel's default
is, and `TunedTable.used` says why. There is no nearest match. Rows are written by
`workbench tune`, and state what was measured and checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from workbench.atomic_files import atomic_write
from workbench.errors import ConfigError
from workbench.kernels.launch import Config
from workbench.kernels.spec import Inputs, KernelSpec

FOLDER = Path(__file__).parent / "tuned"


@dataclass(frozen=True, slots=True)
class TunedRow:
    """The best configuration of a kernel for a bucket of inputs, and how it was found.

    latency_us: p50 and p90 in a CUDA graph. library_us: p50 of the spec's baseline, None if it has
    none. bound: the share of the measured ceiling that p50 reaches. max_err: the largest difference
    from the reference. checked: the cases it was held to.
    """

    kernel: str
    source_hash: str
    bucket: str
    dtype: str
    config: Config
    device: str
    driver: str
    triton: str
    torch: str
    seed: int
    latency_us: Mapping[str, float]
    default_us: float
    library_us: float | None
    bound: float
    max_err: float
    checked: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str]:
        """Return what the row is looked up by."""
        return self.kernel, self.dtype, self.bucket


class TunedTable:
    """The rows of one device, and which configuration each kernel has had from it."""

    def __init__(self, device: str, rows: Iterable[TunedRow] = ()) -> None:
        """Raise `ConfigError` for a row that was measured on another device."""
        self.device = device
        self.rows = {row.key: row for row in rows}
        self.used: dict[tuple[str, str, str], str] = {}
        for row in self.rows.values():
            if row.device != device:
                raise ConfigError(
                    "tuned.device", row.device, f"this table is for {device}", "Tune it again."
                )

    @classmethod
    def load(cls, device: str, folder: Path = FOLDER) -> TunedTable:
        """Return the table of a device by its exact name; an empty one if there is no file.

        Raises `ConfigError` for a file that is not such a table.
        """
        path = folder / file_name(device)
        if not path.exists():
            return cls(device)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(device, [TunedRow(**row) for row in content["rows"]])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ConfigError(
                "tuned", str(path), f"not a tuned table ({error})", "Delete it and tune again."
            ) from error

    def save(self, folder: Path = FOLDER) -> Path:
        """Write the table to its file, whole or not at all, and return the path."""
        path = folder / file_name(self.device)
        rows = [asdict(row) for _, row in sorted(self.rows.items())]
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_text(json.dumps({"device": self.device, "rows": rows}, indent=1) + "\n")
        return path

    def config(self, spec: KernelSpec, dtype: torch.dtype, inputs: Inputs) -> Config | None:
        """Return the tuned configuration for these inputs; None means the kernel's default.

        What was used, and why, is noted in `used`.
        """
        if not self.rows:
            return None
        key = (spec.name, str(dtype).removeprefix("torch."), spec.bucket(**inputs))
        row = self.rows.get(key)
        if row is None:
            self.used[key] = "default: this bucket is not tuned"
        elif row.source_hash != spec.source_hash:
            self.used[key] = "default: the kernel has changed since it was tuned"
        elif row.config.keys() != spec.space.keys():
            self.used[key] = "default: the row lacks a tuning constant"
        else:
            self.used[key] = "tuned"
            return row.config
        return None

    def better_than_library(
        self, spec: KernelSpec, dtype: torch.dtype, inputs: Inputs
    ) -> Config | None:
        """Return the tuned configuration if it was measured to beat the library, else None."""
        config = self.config(spec, dtype, inputs)
        if config is None:
            return None
        key = (spec.name, str(dtype).removeprefix("torch."), spec.bucket(**inputs))
        row = self.rows[key]
        if row.library_us is not None and row.latency_us["p50"] < row.library_us:
            return config
        self.used[key] = "library: it was measured to be faster"
        return None

    def library_is_faster(self, spec: KernelSpec, dtype: torch.dtype, inputs: Inputs) -> bool:
        """Whether the library was measured to beat the kernel as it is now, on such inputs."""
        if self.config(spec, dtype, inputs) is None:
            return False
        key = (spec.name, str(dtype).removeprefix("torch."), spec.bucket(**inputs))
        row = self.rows[key]
        faster = row.library_us is not None and row.library_us < row.latency_us["p50"]
        if faster:
            self.used[key] = "library: it was measured to be faster"
        return faster

    def summary(self, specs: Mapping[str, KernelSpec]) -> str:
        """Return how many of the rows hold for these kernels, and why the others are not used."""
        if not self.rows:
            return f"no tuned table for {self.device}, so kernels run as shipped"
        stale = sorted(
            {
                row.kernel
                for row in self.rows.values()
                if row.kernel not in specs or row.source_hash != specs[row.kernel].source_hash
            }
        )
        count = sum(row.kernel not in stale for row in self.rows.values())
        said = f"{count} of {len(self.rows)} rows tuned on {self.device} hold"
        if stale:
            said += f"; {', '.join(stale)} changed since and run as shipped until tuned again"
        return said

    def describe(self) -> dict[str, Any]:
        """Return the device, how many rows there are, and what was used so far."""
        return {"device": self.device, "rows": len(self.rows), "used": dict(self.used)}


def file_name(device: str) -> str:
    """Return a device's file: `NVIDIA H200` is in `nvidia_h200.json`."""
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_") + ".json"
