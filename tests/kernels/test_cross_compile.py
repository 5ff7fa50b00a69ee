"""Every kernel compiles for GPUs that are not here, without spilling where that would cost.

In processes of their own: with the interpreter on, there is nothing to compile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from workbench.kernels.registry import SPECS

TARGETS = "cuda:80,cuda:90,cuda:100"


def compiled(*arguments: str) -> list[dict[str, Any]]:
    """Return the rows that the compiler program prints."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-m", "workbench.kernels.cross_compile", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_small_cases_compile_for_ampere_hopper_and_blackwell(name: str) -> None:
    rows = compiled("--kernel", name, "--targets", TARGETS)
    assert {row["target"] for row in rows} == set(TARGETS.split(","))
    assert all(0 < row["registers"] <= 255 for row in rows)
    assert all(row["shared"] <= 227 << 10 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_defaults_do_not_spill_on_hopper_nor_does_most_of_the_space(name: str) -> None:
    rows = compiled("--kernel", name, "--case", model_case(name), "--sample", "4")
    default = rows[0]["config"]
    spilled = {str(row["config"]): row["spills"] for row in rows if row["spills"]}
    assert str(default) not in spilled, f"{name}: the default spills: {spilled}"


def model_case(name: str) -> str:
    """Return the small case whose constants are those of a real model, else the last small one."""
    small = [case for case, settings in SPECS[name].cases.items() if settings.small]
    return next((case for case in small if "llama-8b" in case), small[-1])
