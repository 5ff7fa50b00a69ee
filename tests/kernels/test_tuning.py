"""Tuned tables are exact or not used; what an accuracy is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.errors import ConfigError
from workbench.kernels.accuracy import accuracy
from workbench.kernels.registry import get_spec
from workbench.kernels.spec import KernelSpec
from workbench.kernels.tuning import TunedRow, TunedTable, file_name

GPU = "NVIDIA H200"


def row(spec: KernelSpec, inputs: dict[str, Any], **changes: Any) -> TunedRow:
    """Return a row whose configuration is not the default."""
    config = list(spec.configs(inputs))[1]
    made = TunedRow(
        kernel=spec.name,
        source_hash=spec.source_hash,
        bucket=spec.bucket(**inputs),
        dtype="float16",
        config=config,
        device=GPU,
        driver="580.1",
        triton="3.6.0",
        torch="2.11.0",
        seed=0,
        latency_us={"p50": 10.0, "p90": 11.0},
        default_us=12.0,
        library_us=None,
        bound=0.8,
        max_err=0.0,
        checked=["tinypy decode"],
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def spec() -> KernelSpec:
    """A cheap kernel."""
    return get_spec("silu_mul")


def test_a_table_comes_back_as_it_was_saved(spec: KernelSpec, tmp_path: Path) -> None:
    inputs = spec.inputs("tinypy decode", torch.float16)
    saved = TunedTable(GPU, [row(spec, inputs)])
    assert saved.save(tmp_path).name == "nvidia_h200.json" == file_name(GPU)
    loaded = TunedTable.load(GPU, tmp_path)
    assert loaded.rows == saved.rows
    assert loaded.config(spec, torch.float16, inputs) == row(spec, inputs).config
    assert list(loaded.used.values()) == ["tuned"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source_hash": "0" * 16}, "the kernel has changed"),
        ({"bucket": "width 1280 rows 8"}, "this bucket is not tuned"),
        ({"dtype": "bfloat16"}, "this bucket is not tuned"),
        ({"config": {"BLOCK": 64}}, "lacks a tuning constant"),
    ],
)
def test_what_does_not_match_exactly_is_not_used_and_the_table_says_so(
    spec: KernelSpec, changes: dict[str, Any], reason: str
) -> None:
    inputs = spec.inputs("tinypy decode", torch.float16)
    table = TunedTable(GPU, [row(spec, inputs, **changes)])
    assert table.config(spec, torch.float16, inputs) is None
    (used,) = table.used.values()
    assert used.startswith("default")
    assert reason in used


def test_a_table_of_another_device_or_shape_is_refused(spec: KernelSpec, tmp_path: Path) -> None:
    inputs = spec.inputs("tinypy decode", torch.float16)
    with pytest.raises(ConfigError, match=r"tuned\.device='NVIDIA A100'.*this table is for"):
        TunedTable(GPU, [row(spec, inputs, device="NVIDIA A100")])
    assert TunedTable.load("NVIDIA A100", tmp_path).rows == {}
    path = tmp_path / file_name(GPU)
    for content in ("{", "{}", json.dumps({"rows": [{"kernel": "silu_mul"}]})):
        path.write_text(content)
        with pytest.raises(ConfigError, match="not a tuned table"):
            TunedTable.load(GPU, tmp_path)


@pytest.mark.parametrize(("library_us", "used"), [(None, False), (9.0, False), (11.0, True)])
def test_the_library_is_kept_where_it_was_faster(
    spec: KernelSpec, library_us: float | None, used: bool
) -> None:
    inputs = spec.inputs("tinypy decode", torch.float16)
    table = TunedTable(GPU, [row(spec, inputs, library_us=library_us)])
    assert (table.better_than_library(spec, torch.float16, inputs) is not None) == used
    assert list(table.used.values()) == [
        "tuned" if used else "library: it was measured to be faster"
    ]
    assert TunedTable(GPU).better_than_library(spec, torch.float16, inputs) is None


def test_accuracy_sees_a_single_wrong_element_and_a_nan(spec: KernelSpec) -> None:
    wanted = torch.randn(5, 7)
    assert accuracy(spec, torch.float32, wanted.clone(), wanted).share == 0.0
    for value in (wanted[2, 3] + 0.1, torch.nan, torch.inf):
        got = wanted.clone()
        got[2, 3] = value
        assert not accuracy(spec, torch.float32, got, wanted).ok


@pytest.mark.gpu
def test_the_benchmark_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from workbench.bench.kernels import main

    options = ["--kernel", "silu_mul", "--quick"]
    assert main([*options, "--tuned", str(tmp_path), "--rows", str(tmp_path / "rows.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "of ceiling" in printed
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) >= 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: lifted by a machine without")
def test_without_a_gpu_the_benchmark_says_what_would_work() -> None:
    from workbench.bench.kernels import main

    with pytest.raises(ConfigError, match=r"measured on a CUDA GPU.*cross_compile"):
        main([])
