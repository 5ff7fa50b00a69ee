"""`workbench lab`: open JupyterLab on the start notebook, on loopback, with a token.

Replaces this process by JupyterLab of the same environment, whose kernel is this Python, so that
`import workbench` works in a notebook wherever it lies. `--jupyter=OPTION` passes an option on.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from workbench.errors import InvalidValue
from workbench.places import START_NOTEBOOK, repository_root

if TYPE_CHECKING:
    from workbench.cli.delegate import Commands


def add_parser(commands: Commands) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser("lab", help="open JupyterLab on notebooks/00_start.ipynb")
    parser.add_argument("--notebook", type=Path, default=None, help="another notebook to open")
    parser.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    parser.add_argument("--port", type=int, default=None, help="default: the first free from 8888")
    parser.add_argument(
        "--jupyter", action="append", default=[], metavar="OPTION", help="an option for JupyterLab"
    )
    parser.set_defaults(run=run)


def lab_command(notebook: Path, root: Path, *, browser: bool, port: int | None) -> list[str]:
    """Return the command that serves `root` on loopback and opens `notebook`, which lies in it.

    JupyterLab makes a random token by itself; nothing here may turn that off.
    """
    # -P: the folder the command is called from stays off the server's sys.path.
    command = [sys.executable, "-P", "-m", "jupyterlab"]
    command += [f"--ServerApp.root_dir={root}", "--ServerApp.ip=127.0.0.1"]
    # Not as the file to open: the address printed for --no-browser would not lead to it.
    opened = quote(notebook.relative_to(root).as_posix())
    command.append(f"--LabApp.default_url=/lab/tree/{opened}")
    if port is not None:
        command.append(f"--ServerApp.port={port}")
    if not browser:
        command.append("--no-browser")
    if os.geteuid() == 0:
        command.append("--allow-root")  # without it JupyterLab refuses to start for root
    return command


def run(args: argparse.Namespace) -> int:
    """Become JupyterLab; raises `InvalidValue` where the notebook does not exist."""
    root = repository_root()
    notebook: Path = args.notebook.resolve() if args.notebook else root / START_NOTEBOOK
    if not notebook.is_file():
        raise InvalidValue("notebook", str(notebook), "no such file", "Name one: --notebook PATH")
    root = root if notebook.is_relative_to(root) else notebook.parent
    command = lab_command(notebook, root, browser=not args.no_browser, port=args.port)
    # In a venv its own kernel comes before one of the same name in the user's folder.
    environment = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1"}
    os.execve(sys.executable, [*command, *args.jupyter], environment)
