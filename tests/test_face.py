"""The package's face: its names stay what they are, in whatever order things are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("first", ["wb.build", "wb.LLM", "wb.AsyncEngine"])
def test_build_stays_the_function(first: str) -> None:
    """`import workbench.build` puts the module of that name on the package."""
    program = f"import workbench as wb; {first}; wb.build; print(type(wb.build).__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "function\n", done.stderr
