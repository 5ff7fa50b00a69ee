"""Every kernel compiles for GPUs that are not here, without spilling where that would cost.

In a process of its own: with the interpreter on, there is nothing to compile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from compile_only import compile_all, compiler_process, default_resources

from workbench.kernels.registry import SPECS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SHARED_LIMIT = {"cuda:80": 163 << 10, "cuda:90": 227 << 10, "cuda:100": 227 << 10}


@pytest.fixture(scope="module")
def compiler() -> Iterator[ProcessPoolExecutor]:
    with compiler_process() as pool:
        yield pool


def small_cases(name: str) -> list[str]:
    """Return the cases that are made in tests."""
    return [case for case, settings in SPECS[name].cases.items() if settings.small]


def model_case(name: str) -> str:
    """Return the small case whose constants are those of a real model, else the last small one."""
    small = small_cases(name)
    return next((case for case in small if "llama-8b" in case), small[-1])


def too_large(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that take more shared memory than their target has."""
    assert rows, "nothing was compiled"
    return [row for row in rows if not 0 <= row["shared"] <= SHARED_LIMIT[row["target"]]]


@pytest.mark.parametrize("name", SPECS)
def test_every_small_case_compiles_for_hopper(name: str, compiler: ProcessPoolExecutor) -> None:
    rows = []
    for case in small_cases(name):  # some, such as of no row, launch nothing
        rows += compiler.submit(compile_all, name, case, torch.bfloat16, ["cuda:90"]).result()
    assert too_large(rows) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_a_models_shape_fits_ampere_hopper_and_blackwell(
    name: str, dtype: torch.dtype, compiler: ProcessPoolExecutor
) -> None:
    targets = list(SHARED_LIMIT)
    rows = compiler.submit(compile_all, name, model_case(name), dtype, targets).result()
    assert {row["target"] for row in rows} == SHARED_LIMIT.keys()
    assert too_large(rows) == []


@pytest.mark.parametrize("name", SPECS)
def test_the_default_does_not_spill_on_hopper_and_a_sample_of_the_space_compiles(
    name: str, compiler: ProcessPoolExecutor
) -> None:
    case = model_case(name)
    default = compiler.submit(default_resources, name, case, "cuda:90").result()
    assert default
    assert all(0 < row["registers"] <= 255 for row in default)
    assert [row for row in default if row["spills"]] == []
    assert compiler.submit(compile_all, name, case, torch.bfloat16, ["cuda:90"], 4).result()


@pytest.mark.parametrize("case", ["llama-8b small", "llama-8b small new"])
def test_the_prefill_for_hopper_compiles_without_spilling(case: str) -> None:
    changes = {"HOPPER": 1, "BLOCK_M": 128, "BLOCK_N": 128, "TMA": 1, "num_warps": 4}
    config = json.dumps({**changes, "num_stages": 2})
    [row] = printed("--kernel", "prefill_attention", "--case", case, "--config", config)
    assert row["kernel"] == "prefill_hopper_kernel"
    assert row["spills"] == row["stack"] == 0
    assert row["instructions"]["HGMMA"] > 0
    assert row["instructions"]["UTMALDG"] > 0
    assert row["shared"] <= SHARED_LIMIT["cuda:90"]


def printed(*arguments: str) -> list[dict[str, Any]]:
    """Return the rows that the compiler prints as a program."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-m", "workbench.kernels.cross_compile", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
