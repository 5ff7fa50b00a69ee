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
    programs = {
        "base": run_base,
        "medusa": run_medusa,
        "eagle3": run_eagle3,
        "draft": run_draft,
        "lora": run_lora,
        "own-text": run_own_text,
        "measure": run_measure,
    }
    add_programs(commands, "train", "train what ships in adapters/", programs)


def run_base(arguments: list[str]) -> int:
    """The embedded base model."""
    from workbench.train.base import main

    return main(arguments)


def run_medusa(arguments: list[str]) -> int:
    """Medusa heads for a model."""
    return _run_head("medusa", arguments)


def run_eagle3(arguments: list[str]) -> int:
    """An EAGLE-3 head for a model."""
    return _run_head("eagle3", arguments)


def run_draft(arguments: list[str]) -> int:
    """A small draft model for a model."""
    return _run_head("draft", arguments)


def run_lora(arguments: list[str]) -> int:
    """A LoRA adapter for a task whose answers can be checked."""
    from workbench.train.lora_program import main

    return main(arguments)


def run_own_text(arguments: list[str]) -> int:
    """Text that a model writes, for heads to learn from."""
    from workbench.train.heads_text import main

    return main(arguments)


def run_measure(arguments: list[str]) -> int:
    """The acceptance of heads in the engine."""
    from workbench.train.heads_served import main

    return main(arguments)


def _run_head(kind: str, arguments: list[str]) -> int:
    from workbench.train.heads_program import main

    return main(kind, arguments)
