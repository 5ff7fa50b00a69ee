"""`workbench tune KERNEL …`: search the spaces of Triton kernels; see `workbench.playground`.

The program parses its own arguments; this only starts it.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.cli.delegate import Commands


def add_parser(commands: Commands) -> None:
    """Add the subcommand to the command line."""
    summary = "search the configurations of Triton kernels, each verified"
    parser = commands.add_parser("tune", help=summary, description=summary)
    parser.add_argument("kernel", help="a kernel's name, several with commas, or all")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="the program's own; try `tune all --help`"
    )
    parser.set_defaults(run=lambda args: run_tune([args.kernel, *args.arguments]))


def run_tune(arguments: list[str]) -> int:
    """Start the program."""
    from workbench.playground.program import main

    return main(arguments)
