"""Every notebook runs top to bottom from a copy elsewhere, and is fit to be committed."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from notebook_parameters import SHORTER, set_parameter, shorten

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 2 * 1024**2
SECONDS_PER_NOTEBOOK = 240

# Folders that are somebody's own machine, wherever the notebook was run.
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|Users|root|tmp|private|mnt|workspace)/[\w.-]+")
DATA_URI = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]+")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def execute(path: Path, folder: Path) -> Any:
    """Run a copy of a notebook in `folder` and return it; raises what the first bad cell raised."""
    copy = Path(shutil.copy(path, folder))
    notebook = nbformat.read(copy, as_version=4)
    shorten(notebook, path.stem)
    client = NotebookClient(
        notebook,
        timeout=SECONDS_PER_NOTEBOOK,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    return notebook


def output_texts(notebook: Any) -> Iterator[str]:
    """Yield every readable text in a notebook's outputs; encoded pictures are left out."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            yield DATA_URI.sub("", str(output.get("text", "")))
            yield "\n".join(output.get("traceback", []))
            for kind, value in data.items():
                if kind.startswith("text/"):
                    yield DATA_URI.sub("", str(value))


def machine_paths(notebook: Any) -> set[str]:
    """Return the absolute paths of a machine that a notebook's outputs show."""
    here = [str(p) for p in (ROOT, Path.home(), Path(sys.prefix), tempfile.gettempdir())]
    known = re.compile("|".join(rf"(?<![\w.]){re.escape(p)}/[\w.-]+" for p in here if p != "/"))
    texts = list(output_texts(notebook))
    return {
        found for text in texts for find in (MACHINE_PATH, known) for found in find.findall(text)
    }


@each_notebook
@pytest.mark.slow
@pytest.mark.timeout(SECONDS_PER_NOTEBOOK + 30)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    notebook = execute(path, tmp_path)
    assert [c for c in notebook.cells if c.cell_type == "code"], "no code cell"


@each_notebook
def test_it_is_small(path: Path) -> None:
    assert path.stat().st_size < MAX_BYTES


@each_notebook
def test_its_outputs_name_no_machine(path: Path) -> None:
    assert machine_paths(nbformat.read(path, as_version=4)) == set()


@each_notebook
def test_it_shows_no_error_and_asks_for_the_kernel_everyone_has(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    outputs = [o for c in notebook["cells"] for o in c.get("outputs", [])]
    assert [o["ename"] for o in outputs if o["output_type"] == "error"] == []


def notebook_of(*sources: str) -> Any:
    """Return a notebook of these code cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    return nbformat.v4.new_notebook(cells=cells)


def test_a_failing_cell_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    bad = tmp_path / "bad.ipynb"
    nbformat.write(notebook_of("x = 1", "assert x == 2"), bad)
    with pytest.raises(CellExecutionError, match="AssertionError"):
        execute(bad, tmp_path / "copy")


def test_what_is_shortened_is_there() -> None:
    assert SHORTER.keys() <= {path.stem for path in NOTEBOOKS}


def test_a_parameter_is_set_where_there_is_one() -> None:
    notebook = notebook_of("# Parameters\nSEED = 0\nSECONDS = 45  # of training", "SECONDS = 1")
    set_parameter(notebook, "SECONDS", 6)
    assert "SECONDS = 6  # of training" in notebook.cells[0].source
    assert notebook.cells[1].source == "SECONDS = 1"
    with pytest.raises(AssertionError, match="no parameter STEPS"):
        set_parameter(notebook, "STEPS", 6)


def test_a_notebook_runs_outside_the_repository(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    path = tmp_path / "here.ipynb"
    nbformat.write(notebook_of("import os, workbench, workbench.kernels\nprint(os.getcwd())"), path)
    notebook = execute(path, tmp_path / "copy")
    assert notebook.cells[0].outputs[0].text.strip() == str((tmp_path / "copy").resolve())
    assert machine_paths(notebook), "a path of this machine in an output was not seen"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("saved to /home/ada/x.json", True),
        ("<a href='/Users/ada/x'>", True),
        ("see https://example.org/home/page", False),
        ("notebooks/root/x", False),
        ("data:image/png;base64,AA+/tmp/BB", False),
    ],
)
def test_what_counts_as_a_machine_path(text: str, seen: bool) -> None:
    notebook = notebook_of("")
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text=text)]
    assert bool(machine_paths(notebook)) is seen
