"""`workbench train PROGRAM …`: run one of the training programs of `workbench.train`.

Each program parses its own arguments; this only starts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.cli.delegate import add_programs

if TYPE_CHECKING:
    from workbench.cli.delegate import Commands


def add_parser(commands: Commands) -> None:
    """Add the subcommand to the command line."""
    add_programs(commands, "train", "train what ships in adapters/", {"base": run_base})


def run_base(arguments: list[str]) -> int:
    """The embedded base model."""
    from workbench.train.base import main

    return main(arguments)
