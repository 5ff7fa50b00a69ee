"""The notebooks of the playground in JupyterLab: run, turn a knob, see the figures change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("browser"),  # one server, one worker
]

RunNotebook = Callable[[Path], list[Any]]
SECONDS = 60e3
DARK = "document.body.dataset.jpThemeLight === 'false'"


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
    path = f".jp-Cell[data-windowed-list-index='{index}'] .wb-view"
    panel = page.locator(path)
    panel.wait_for(state="visible", timeout=SECONDS)
    # A cell that comes into the window is built anew: until it has drawn it says nothing.
    drawn = "path => document.querySelector(`${path} .wb-tiles`)?.innerText.trim()"
    page.wait_for_function(drawn, arg=path, timeout=SECONDS)
    return panel


@pytest.mark.runs_notebook("10_kernel_playground")
def test_a_knob_is_turned_and_the_figures_and_the_code_change(
    repository: Path, run_notebook: RunNotebook, page: Any
) -> None:
    cells = run_notebook(repository / "notebooks" / "10_kernel_playground.ipynb")
    assert not errors(cells)
    panel = show(page, cells)
    assert not panel.locator(".wb-problem").inner_text().strip()
    before = panel.get_attribute("data-config")
    figures = panel.locator(".wb-tiles").inner_text()
    knob = panel.locator("input.wb-knob").first
    knob.focus()
    page.keyboard.press("ArrowLeft")  # in JupyterLab's command mode, too
    page.wait_for_function(
        "([panel, before]) => panel.dataset.config !== before && panel.dataset.status === 'ok'",
        arg=[panel.element_handle(), before],
        timeout=SECONDS,
    )
    page.wait_for_function(
        "([tiles, before]) => tiles.innerText !== before",
        arg=[panel.locator(".wb-tiles").element_handle(), figures],
        timeout=SECONDS,
    )
    # The figures are known in the browser: a click on the grid needs no kernel.
    box = panel.locator("canvas.wb-space").bounding_box()
    here = panel.get_attribute("data-config")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function(
        "([panel, here]) => panel.dataset.config !== here",
        arg=[panel.element_handle(), here],
        timeout=SECONDS,
    )
    page.evaluate(
        "void window.jupyterapp.commands.execute("
        "'apputils:change-theme', {theme: 'JupyterLab Dark'})"
    )
    page.wait_for_function(DARK, timeout=SECONDS)
    page.wait_for_timeout(500)  # for the picture only: nothing is judged by it
    shots = repository / ".artifacts" / "browser"
    page.screenshot(path=str(shots / "10_kernel_playground_dark.png"))
    assert not panel.locator(".wb-problem").inner_text().strip()
    recorded = show(page, cells, 1)
    assert "recorded" in recorded.inner_text()
    assert "TB/s" in recorded.locator(".wb-tiles").inner_text()
    page.wait_for_timeout(500)
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
