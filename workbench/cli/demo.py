"""`workbench demo`: execute the full-engine notebook without a browser and print what it measured.

Leaves the executed notebook as HTML in `.artifacts/` and prints what the cells that carry the tag
`measured` show, as text. The notebook file itself is not changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InvalidValue
from workbench.places import ARTIFACTS, FULL_ENGINE_NOTEBOOK, repository_root

if TYPE_CHECKING:
    from workbench.cli.delegate import Commands

TAG = "measured"
WIDGET = "application/vnd.jupyter.widget-view+json"


def add_parser(commands: Commands) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "demo", help="run the full-engine notebook, print what it measured"
    )
    parser.add_argument("--notebook", type=Path, default=None)
    parser.add_argument(
        "--output", type=Path, default=None, help="folder for the HTML (.artifacts)"
    )
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one cell")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute, write, print; status 1 where a cell failed (the HTML then shows how far it came)."""
    import nbformat

    root = repository_root()
    path: Path = args.notebook or root / FULL_ENGINE_NOTEBOOK
    if not path.is_file():
        raise InvalidValue("notebook", str(path), "no such file", "Name one: --notebook PATH")
    notebook = nbformat.read(path, as_version=4)
    failure = execute(notebook, path, args.timeout)
    page = write_html(notebook, (args.output or root / ARTIFACTS) / f"{path.stem}.html")
    for text in measured(notebook):
        print(text)
    print(f"notebook as HTML: {page}")
    if failure:
        print(f"error: {path.name}: {failure}", file=sys.stderr)
    return 1 if failure else 0


def execute(notebook: Any, path: Path, timeout: int) -> str | None:
    """Run every cell in place, in the notebook's own folder; return the failure's text, or None."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    where = {"metadata": {"path": str(path.resolve().parent)}}
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources=where,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # a newcomer reads this terminal
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return str(error)
    return None


def write_html(notebook: Any, page: Path) -> Path:
    """Write the executed notebook as one HTML file and return its path."""
    from nbconvert.exporters import HTMLExporter

    page.parent.mkdir(parents=True, exist_ok=True)
    body, _ = HTMLExporter().from_notebook_node(notebook)
    page.write_text(body, encoding="utf-8")
    return page


def measured(notebook: Any) -> Iterator[str]:
    """Yield the text of every output of the cells tagged `measured`, in order.

    Left out is what says nothing as text: progress bars (standard error) and widgets.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code" and TAG in cell.metadata.get("tags", []):
            for output in cell.outputs:
                data = output.get("data", {})
                if output.get("name") == "stderr" or WIDGET in data:
                    continue
                text = output.get("text") or data.get("text/plain", "")
                if text.strip():
                    yield text.rstrip()
