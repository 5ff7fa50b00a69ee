"""What a newcomer does first: open the start notebook in JupyterLab and run it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),  # one server, one worker
]

RunNotebook = Callable[[Path], list[Any]]


def text_of(cell: Any) -> str:
    """Return the text of a cell's outputs, streams and results alike."""
    return "".join(
        "".join(o.get("text", "")) + "".join(o.get("data", {}).get("text/plain", ""))
        for o in cell.get("outputs", [])
    )


def errors_of(cells: list[Any]) -> list[str]:
    """Return the errors that the cells show, by name and value."""
    outputs = [o for cell in cells for o in cell.get("outputs", [])]
    return [f"{o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error"]


@pytest.mark.runs_notebook("00_start")
def test_the_start_notebook_runs_and_generates(repository: Path, run_notebook: RunNotebook) -> None:
    cells = run_notebook(repository / "notebooks" / "00_start.ipynb")
    assert errors_of(cells) == []
    generating = [cell for cell in cells if ".generate(" in "".join(cell["source"])]
    assert generating, "no cell of the start notebook generates text"
    assert any(len(text_of(cell).split()) >= 3 for cell in generating), "no text was generated"


def test_the_driver_sees_outputs_and_errors(tmp_path: Path, run_notebook: RunNotebook) -> None:
    path = tmp_path / "failing.ipynb"
    sources = [
        "import workbench, sys\nprint(sys.executable)",
        "",
        "1 / 0",
        "print('never reached')",
    ]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    ran = run_notebook(path)

    assert text_of(ran[0]).strip() == sys.executable, "the kernel is not this environment's"
    assert errors_of(ran) == ["ZeroDivisionError: division by zero"]
    assert ran[3]["execution_count"] is None
