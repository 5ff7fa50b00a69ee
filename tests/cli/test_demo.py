"""`workbench demo` on notebooks of the test's own: what it prints, writes and returns."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from workbench.cli.main import main


def write_notebook(path: Path, *cells: tuple[str, list[str]]) -> Path:
    """Write a notebook of (source, tags) cells."""
    made = [nbformat.v4.new_code_cell(s, metadata={"tags": tags}) for s, tags in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


def test_it_prints_what_the_tagged_cells_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_notebook(
        tmp_path / "demo.ipynb",
        ("print('not this')", []),
        ("print('a table')\n{'tokens_per_second': 6 * 7}", ["measured"]),
        ("import sys; print('50%|###', file=sys.stderr)", ["measured"]),
        ("import ipywidgets; ipywidgets.IntSlider()", ["measured"]),
        ("'again'", ["other", "measured"]),
    )
    before = path.read_bytes()
    assert main(["demo", "--notebook", str(path), "--output", str(tmp_path / "out")]) == 0
    page = tmp_path / "out" / "demo.html"
    assert capsys.readouterr().out.splitlines() == [
        "a table",
        "{'tokens_per_second': 42}",
        "'again'",
        f"notebook as HTML: {page}",
    ]
    assert "not this" in page.read_text(encoding="utf-8")
    assert path.read_bytes() == before


def test_a_failing_cell_is_told_and_the_page_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_notebook(tmp_path / "bad.ipynb", ("print(1)", ["measured"]), ("1 / 0", []))
    assert main(["demo", "--notebook", str(path), "--output", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("1\n")
    assert "ZeroDivisionError" in shown.err
    assert "ZeroDivisionError" in (tmp_path / "bad.html").read_text(encoding="utf-8")


def test_a_cell_that_takes_too_long_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_notebook(tmp_path / "slow.ipynb", ("import time; time.sleep(60)", []))
    options = ["--output", str(tmp_path), "--timeout", "1"]
    assert main(["demo", "--notebook", str(path), *options]) == 1
    assert "slow.ipynb" in capsys.readouterr().err
