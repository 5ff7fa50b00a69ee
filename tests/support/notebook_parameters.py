"""Smaller values for the parameters of notebooks, wherever a test runs them."""

from __future__ import annotations

import re
from typing import Any

# Where what a notebook shows costs much more than what a run of it proves. That a loss falls in
# training, and what the shipped heads and adapters reach, is seen in tests/train.
SHORTER: dict[str, dict[str, Any]] = {
    "30_speculation": {"NUM_PROMPTS": 4, "MAX_TOKENS": 24, "SIZES": (1, 4)},
    "31_train_heads": {"NUM_PROMPTS": 2, "MAX_TOKENS": 24, "NUM_ROWS": 16, "STEPS": 4},
    "32_invent_a_strategy": {"NUM_PROMPTS": 4, "MAX_TOKENS": 24, "SIZES": (1, 4)},
    "41_train_adapter": {"SECONDS": 6},
}


def shorten(notebook: Any, name: str) -> None:
    """Give a notebook of this name its smaller values, if it has any."""
    for parameter, value in SHORTER.get(name, {}).items():
        set_parameter(notebook, parameter, value)


def set_parameter(notebook: Any, name: str, value: Any) -> None:
    """Change the line of the parameters' cell that gives `name` its value; there must be one."""
    (cell,) = (c for c in notebook.cells if c.source.startswith("# Parameters\n"))
    cell.source, count = re.subn(rf"(?m)^{name} = [^#\n]*", f"{name} = {value!r}  ", cell.source)
    assert count == 1, f"the notebook has no parameter {name}"
