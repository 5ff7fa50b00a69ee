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


def test_packages_are_reached_through_the_face() -> None:
    program = "import workbench as wb; wb.speculation.NGram; print(wb.lora.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "workbench.lora\n", done.stderr


def test_a_misspelt_name_is_told_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Tracer'. Did you mean `Trace`\?"):
        _ = wb.Tracer
    with pytest.raises(AttributeError, match="Did you mean `KVCacheView`"):
        _ = wb.views.KVCacheVeiw
    with pytest.raises(AttributeError, match=r"no attribute 'zzz'$"):
        _ = wb.zzz


def test_completion_offers_the_names_and_no_imports() -> None:
    names = {name for name in dir(wb) if not name.startswith("_")}
    assert {*wb.__all__} - {"__version__"} <= names
    assert not names & {"Any", "TYPE_CHECKING", "annotations", "importlib", "sys"}
