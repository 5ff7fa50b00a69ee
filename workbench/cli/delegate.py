"""Hand a subcommand's remaining arguments to the program that owns them.

Used by `workbench bench` and `workbench train`: each program has its own parser and its own
`--help`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

Program = Callable[[list[str]], int]


def add_programs(
    commands: Commands, name: str, summary: str, programs: Mapping[str, Program]
) -> None:
    """Add a subcommand `name` that runs one of `programs` with whatever arguments follow."""
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.add_argument("program", choices=sorted(programs))
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="the program's own; try PROGRAM --help"
    )
    parser.set_defaults(run=lambda args: programs[args.program](args.arguments))
