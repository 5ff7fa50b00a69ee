"""The package's face: its names stay what they are, in whatever order things are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

import workbench as wb


@pytest.mark.parametrize("first", ["wb.build", "wb.LLM", "wb.views.View"])
def test_build_stays_the_function(first: str) -> None:
    """`import workbench.build` puts the module of that name on the package."""
    program = f"import workbench as wb; {first}; wb.build; print(type(wb.build).__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "function\n", done.stderr


@pytest.mark.parametrize("name", wb.__all__)
def test_every_name_of_the_face_is_there(name: str) -> None:
    assert getattr(wb, name) is not None


def test_a_module_of_the_face_needs_no_other_name_before_it() -> None:
    program = "import workbench as wb; print(wb.speculation.NGram.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "NGram\n", done.stderr
