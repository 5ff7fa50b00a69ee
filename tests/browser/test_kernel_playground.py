"""The notebooks of the playground in JupyterLab: run, turn a knob, see the figures change."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import expect, set_theme

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),  # one server, one worker
]

RunNotebook = Callable[[Path], list[Any]]


def errors(cells: list[Any]) -> list[Any]:
    return [o for c in cells for o in c.get("outputs", []) if o["output_type"] == "error"]


def show(page: Any, cells: list[Any], place: int = 0) -> Any:
    """Scroll to a cell with a widget, by default the first, and return its panel."""
    kinds = [[list(o.get("data", {})) for o in c.get("outputs", [])] for c in cells]
    index = [
        k for k, outputs in enumerate(kinds)
        if any("application/vnd.jupyter.widget-view+json" in types for types in outputs)
    ][place]  # fmt: skip
    page.evaluate(
        """async index => {
          await window.jupyterapp.shell.currentWidget.content.scrollToItem(index, "start");
        }""",
        index,
    )
    panel = page.locator(f".jp-Cell[data-windowed-list-index='{index}'] .wb-view")
    # A cell that comes into the window is built anew: until it has drawn it says nothing.
    expect(panel.locator(".wb-tiles")).to_have_text(re.compile(r"\S"))
    return panel


def drawn_now(panel: Any) -> tuple[str, str]:
    """Return the configuration and the figures that are drawn: both of one drawing."""
    config, figures = panel.evaluate(
        "panel => [panel.dataset.config, panel.querySelector('.wb-tiles').textContent]"
    )
    return config, figures


@pytest.mark.runs_notebook("10_kernel_playground")
def test_a_knob_is_turned_and_the_figures_and_the_code_change(
    repository: Path, run_notebook: RunNotebook, page: Any
) -> None:
    cells = run_notebook(repository / "notebooks" / "10_kernel_playground.ipynb")
    assert not errors(cells)
    panel = show(page, cells)
    problem = panel.locator(".wb-problem")
    expect(problem).to_have_text("")
    config, figures = drawn_now(panel)
    knob = panel.locator("input.wb-knob").first
    knob.focus()
    page.keyboard.press("ArrowLeft")  # in JupyterLab's command mode, too
    expect(panel).not_to_have_attribute("data-config", config)
    expect(panel).to_have_attribute("data-status", "ok")
    expect(panel.locator(".wb-tiles")).not_to_have_text(figures)
    # The figures are known in the browser: a click on the grid needs no kernel.
    config, _ = drawn_now(panel)
    panel.locator("canvas.wb-space").click()
    expect(panel).not_to_have_attribute("data-config", config)
    set_theme(page, "Dark")
    shots = repository / ".artifacts" / "browser"
    page.screenshot(path=str(shots / "10_kernel_playground_dark.png"))
    expect(problem).to_have_text("")
    recorded = show(page, cells, 1)
    expect(recorded.locator(".wb-recorded")).to_contain_text("recorded")
    expect(recorded.locator(".wb-tiles")).to_contain_text("TB/s")
    page.screenshot(path=str(shots / "10_kernel_playground_recorded.png"))


@pytest.mark.runs_notebook("11_write_a_kernel")
def test_a_kernel_is_written_and_swapped_in(
    repository: Path, run_notebook: RunNotebook, page: Any
) -> None:
    cells = run_notebook(repository / "notebooks" / "11_write_a_kernel.ipynb")
    assert not errors(cells)
    text = str([c.get("outputs", []) for c in cells])
    assert "refused. case 'one element'" in text
    assert "the same tokens" in text
    assert "no such kernel" in text
