"""A kernel from a cell is refused with its first wrong element, or swapped into an engine."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import workbench as wb
from workbench.errors import ConfigError
from workbench.kernels import silu_mul
from workbench.playground.client import Worker
from workbench.playground.magics import KernelMagic
from workbench.playground.writing import check_kernel, compare_in_engine

KERNEL = inspect.getsource(silu_mul).partition("@triton.jit\n")[2].partition("\n\n\n")[0]
CELL = "from workbench.kernels.early import await_previous\n\n@triton.jit\n" + KERNEL.replace(
    "gate * tl.sigmoid(gate)", "gate / (1.0 + tl.exp(-gate))"
)
OFF_BY_ONE = CELL.replace("inside = columns < width", "inside = columns < width - 1")


@pytest.fixture(scope="module")
def workers(worker: Worker, compiler: Worker) -> dict[str, Worker]:
    return {"worker": worker, "compiler": compiler}


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    """A tiny engine on the Triton backend."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = tiny.write_checkpoint(tmp_path, "llama")
    with wb.LLM(str(folder), backend="triton", device=device, dtype="float32").engine as made:
        yield made


def test_the_cells_differ_from_what_ships() -> None:
    assert "tl.exp(-gate)" in CELL
    assert OFF_BY_ONE != CELL


def test_a_right_kernel_is_set_beside_the_current_one(workers: dict[str, Worker]) -> None:
    report = check_kernel("silu_mul", CELL, **workers)
    assert report.ok, report
    assert "right on" in repr(report)
    assert report.resources.keys() == {"cell", "current"}
    assert bool(report.times) == torch.cuda.is_available()
    assert "<pre" in report._repr_html_()


def test_a_wrong_kernel_is_refused_with_its_first_case_and_element(
    workers: dict[str, Worker],
) -> None:
    report = check_kernel("silu_mul", OFF_BY_ONE, **workers)
    assert not report.ok
    assert "case 'one element'" in report.failure
    assert "the output at [0, 0] is nan" in report.failure
    with pytest.raises(ConfigError, match="was refused"):
        report.spec  # noqa: B018 - a property that raises


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("x = 1", "it defines no kernel"),
        ("@triton.jit\ndef other(x): pass", "launches no kernel of that name"),
        ("@triton.jit\ndef silu_mul_kernel(x): pass", "The launch passes: gate_up"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_cell_that_is_no_kernel_says_so(workers: dict[str, Worker], cell: str, said: str) -> None:
    report = check_kernel("silu_mul", cell, cases=["odd width"], **workers)
    assert not report.ok
    assert said in report.failure


def test_unknown_names_are_refused(workers: dict[str, Worker]) -> None:
    with pytest.raises(ConfigError, match="no such kernel"):
        check_kernel("softmax", CELL, **workers)
    with pytest.raises(ConfigError, match="no such case"):
        check_kernel("silu_mul", CELL, cases=["none"], **workers)


def test_a_kernel_is_swapped_into_a_running_engine(
    engine: Any, workers: dict[str, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = check_kernel("silu_mul", CELL, cases=["tinypy decode"], **workers)
    waiting = engine.add([1, 2, 3], wb.SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    engine.step()
    swapped = compare_in_engine(engine, report.spec, [3, 4, 5], max_tokens=3)
    assert swapped.same_tokens, swapped
    assert swapped.longest_ms >= swapped.after[1] > 0
    assert engine.runner.backend.kernels["silu_mul"] is report.spec
    engine.run()
    assert len(engine.output(waiting).outputs[0].token_ids) == 4
    dropped: list[str] = []
    monkeypatch.setattr(engine.overlap, "drop", lambda: dropped.append("what the old one ran"))
    engine.swap(backend="sdpa")
    with pytest.raises(ConfigError, match="does not run Triton kernels"):
        engine.swap(kernel=report.spec)
    with pytest.raises(ConfigError, match="no such kernel"):
        engine.swap(backend="triton", kernel="softmax")
    assert (engine.runner.backend.name, dropped) == ("sdpa", [])
    engine.swap(backend="triton", kernel=report.spec)  # into the backend that comes with it
    assert engine.runner.backend.kernels["silu_mul"] is report.spec
    assert len(dropped) == 1


class Shell:
    """What the magic needs of IPython."""

    def __init__(self, **names: Any) -> None:
        self.user_ns = names


def test_the_magic_is_the_function(
    engine: Any, workers: dict[str, Worker], capsys: pytest.CaptureFixture[str]
) -> None:
    magic = KernelMagic(Shell(engine=engine))
    magic.worker, magic.compiler = workers["worker"], workers["compiler"]
    report = magic("silu_mul --case 'tinypy decode' --swap engine --max-tokens 2", CELL)
    assert report is not None
    assert "the same tokens" in repr(report)
    assert magic.shell.user_ns["kernel_report"] is report
    for line, said in [("silu_mul --swap nothing", "names no engine"), ("", "cannot be read")]:
        assert magic(line, CELL) is None
        assert said in capsys.readouterr().out
