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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SHARED_LIMIT = {"cuda:80": 163 << 10, "cuda:90": 227 << 10, "cuda:100": 227 << 10}


def compiled(*arguments: str) -> list[dict[str, Any]]:
    """Return the rows that the compiler program prints."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-m", "workbench.kernels.cross_compile", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def model_case(name: str) -> str:
    """Return the small case whose constants are those of a real model, else the last small one."""
    small = [case for case, settings in SPECS[name].cases.items() if settings.small]
    return next((case for case in small if "llama-8b" in case), small[-1])


@pytest.mark.parametrize("name", SPECS)
def test_every_small_case_compiles_for_hopper(name: str) -> None:
    rows = compiled("--kernel", name, "--targets", "cuda:90")
    assert all(0 < row["registers"] <= 255 for row in rows)
    assert all(row["shared"] <= SHARED_LIMIT["cuda:90"] for row in rows)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", SPECS)
def test_a_models_shape_fits_ampere_hopper_and_blackwell(name: str, dtype: str) -> None:
    case = ["--case", model_case(name), "--dtype", dtype]
    rows = compiled("--kernel", name, *case, "--targets", ",".join(SHARED_LIMIT))
    assert {row["target"] for row in rows} == SHARED_LIMIT.keys()
    assert [row for row in rows if row["shared"] > SHARED_LIMIT[row["target"]]] == []


@pytest.mark.parametrize("name", SPECS)
def test_the_default_does_not_spill_on_hopper_and_a_sample_of_the_space_compiles(name: str) -> None:
    rows = compiled("--kernel", name, "--case", model_case(name), "--sample", "4")
    default = [row for row in rows if row["config"] == rows[0]["config"]]
    assert [row for row in default if row["spills"]] == []


@pytest.mark.parametrize("case", ["llama-8b small", "llama-8b small new"])
def test_the_prefill_for_hopper_compiles_without_spilling(case: str) -> None:
    changes = {"HOPPER": 1, "BLOCK_M": 128, "BLOCK_N": 128, "TMA": 1, "num_warps": 4}
    config = json.dumps({**changes, "num_stages": 2})
    [row] = compiled("--kernel", "prefill_attention", "--case", case, "--config", config)
    assert row["kernel"] == "prefill_hopper_kernel"
    assert row["spills"] == row["stack"] == 0
    assert row["instructions"]["HGMMA"] > 0
    assert row["instructions"]["UTMALDG"] > 0
    assert row["shared"] <= SHARED_LIMIT["cuda:90"]
