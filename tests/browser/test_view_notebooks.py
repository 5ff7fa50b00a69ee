"""The notebooks of the views in JupyterLab: every panel draws, and the arrow keys scrub it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import expect, step_back

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),  # one server, one worker
]

# The last step may be a later one still: a live panel hears of it when the kernel has time.
AT_THE_END = """path => { const panel = document.querySelector(path);
  return panel.dataset.step === panel.querySelector(".wb-slider").max; }"""
RunNotebook = Callable[[Path], list[Any]]
# How many panels each shows.
PANELS = {
    "03_kv_cache": 3,
    "04_inflight_batching": 4,
    "05_time_travel": 4,
    "30_speculation": 2,
    "32_invent_a_strategy": 1,
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.runs_notebook(name)) for name in PANELS]
)
def test_panels_draw_and_are_scrubbed_by_keys(
    name: str, repository: Path, run_notebook: RunNotebook, page: Any
) -> None:
    cells = run_notebook(repository / "notebooks" / f"{name}.ipynb")
    errors = [o for c in cells for o in c.get("outputs", []) if o["output_type"] == "error"]
    assert not errors, errors
    # Cells out of sight may be left out of the page: the notebook is gone through cell by cell.
    seen: set[str] = set()
    for index in range(len(cells)):
        page.evaluate(
            """async index => {
              const notebook = window.jupyterapp.shell.currentWidget.content;
              await notebook.scrollToItem(index, "start");
            }""",
            index,
        )
        if not cells[index].get("outputs"):
            continue
        views = [o for o in cells[index]["outputs"] if _is_widget(o)]
        if not views:
            continue
        path = f".jp-Cell[data-windowed-list-index='{index}'] .wb-view"
        _scrub(page, path)
        expect(page.locator(path).locator(".wb-problem")).to_have_text("")
        seen.add(str(index))
    assert len(seen) == PANELS[name]


def _is_widget(output: Any) -> bool:
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def _scrub(page: Any, path: str) -> None:
    """Go to the last step and one back, by keys, and see that the panel draws both."""
    panel = page.locator(path)
    panel.wait_for(state="visible")
    panel.get_by_label("step", exact=True).focus()
    page.keyboard.press("End")
    page.wait_for_function(AT_THE_END, arg=path)
    step_back(page, panel)
