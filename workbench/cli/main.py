"""Parse the command line and run one subcommand.

Called by the `workbench` script and by `python -m workbench`. A user's mistake (`WorkbenchError`)
is printed as one message without a traceback and ends with status 2; anything else is a bug and
shows all of itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from workbench.cli import bench, demo, doctor, generate, lab, train, tune
from workbench.errors import WorkbenchError

SUBCOMMANDS = (lab, demo, generate, bench, tune, train, doctor)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every subcommand; each sets `run`, called with what was parsed."""
    parser = argparse.ArgumentParser(
        prog="workbench",
        description="An LLM inference engine that you can open up.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for subcommand in SUBCOMMANDS:
        subcommand.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line given (default: the process's own); return the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:  # somebody looks what there is
        parser.print_help(sys.stderr)
        return 2
    try:
        status: int = args.run(args)
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status
