"""The dashboard in JupyterLab: its buttons and sliders act on the engine in the kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browsing import expect, set_theme, step_back

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),  # one server, one worker
]

RunNotebook = Callable[[Path], list[Any]]

ENGINE = """
import workbench as wb
engine = wb.build(wb.EngineConfig("tinypy", num_blocks=160, max_sequences=16, max_batch_tokens=256))
params = wb.SamplingParams(max_tokens=400, ignore_eos=True, seed=1)
prompts = ["def quicksort(xs):", "class Stack:", "import os", "for i in range(10):"]
for i in range(12):
    name = "<script>window.harmed=1</script>" if i == 0 else None
    engine.add(prompts[i % 4] * (1 + i % 3), params, request_id=name)
"""
SHOW = "board = wb.views.EngineDashboard(engine)\nboard"


@pytest.fixture
def open_board(tmp_path: Path, run_notebook: RunNotebook, page: Any) -> Any:
    """Run a notebook with a dashboard over an engine with twelve requests; return its panel."""

    def run(*cells: str) -> Any:
        path = tmp_path / "dashboard.ipynb"
        made = [nbformat.v4.new_code_cell(source.strip()) for source in cells]
        kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=kernel), path)
        ran = run_notebook(path)
        errors = [o for cell in ran for o in cell["outputs"] if o["output_type"] == "error"]
        assert not errors, errors
        panel = page.locator(".wb-dashboard")
        panel.wait_for()
        return panel

    return run


def wait_for(page: Any, condition: str) -> None:
    """Wait until a condition on `text(selector)` and `board` holds in the page."""
    page.wait_for_function(
        f"""() => {{
          const board = document.querySelector(".wb-dashboard");
          const text = (selector) => board.querySelector(selector)?.textContent ?? "";
          const step = Number(board.dataset.step ?? 0);
          return {condition};
        }}"""
    )


def test_the_hand_on_an_engine(open_board: Any, page: Any, repository: Path) -> None:
    panel = open_board(ENGINE, SHOW)
    wait_for(page, 'text(".wb-state") === "paused"')
    button = panel.get_by_role("button", name="Step", exact=True)
    button.click()
    wait_for(page, "step === 1")
    panel.get_by_label("steps", exact=True).fill("12")
    panel.get_by_role("button", name="steps", exact=True).click()
    wait_for(page, 'step === 13 && text(".wb-state") === "paused"')

    # A slider's change comes back from the engine's own config; a bad one is told.
    slider = panel.get_by_label("sequences")
    slider.evaluate(
        "e => { e.value = 2; e.dispatchEvent(new Event('input'));"
        " e.dispatchEvent(new Event('change')); }"
    )
    wait_for(page, 'text(".wb-limit:nth-of-type(3) output") === "4"')
    slider.evaluate(
        "e => { e.value = 13; e.dispatchEvent(new Event('input'));"
        " e.dispatchEvent(new Event('change')); }"
    )
    wait_for(page, 'text(".wb-notice").includes("more than max_batch_tokens=256")')
    panel.get_by_label("policy").select_option("shortest_first")
    wait_for(page, 'text(".wb-notice") === ""')

    requests = panel.locator(".wb-request")
    expect(requests).to_have_count(12)
    panel.get_by_role("button", name="abort <script>").click()
    expect(requests).to_have_count(11)
    assert page.evaluate("window.harmed") is None

    panel.get_by_role("button", name="Run", exact=True).click()
    wait_for(page, 'text(".wb-state") === "running" && step > 40')
    panel.get_by_role("button", name="Pause", exact=True).click()
    wait_for(page, 'text(".wb-state") === "paused"')
    shots = repository / ".artifacts" / "browser"
    panel.screenshot(path=str(shots / "dashboard-light.png"))
    set_theme(page, "Dark")
    panel.screenshot(path=str(shots / "dashboard-dark.png"))
    step_back(page, panel)


def test_an_asynchronous_engine(open_board: Any, page: Any) -> None:
    cells = (
        ENGINE + "aengine = wb.AsyncEngine(engine)\nawait aengine.pause()\n"
        "reply = aengine.generate('x = ', params)",  # it waits until the panel is there
        SHOW.replace("(engine)", "(aengine)"),
    )
    panel = open_board(*cells)
    wait_for(page, 'text(".wb-state") === "paused"')
    panel.get_by_role("button", name="Run", exact=True).click()
    wait_for(page, 'text(".wb-state") === "running" && step > 3')
    panel.get_by_role("button", name="Pause", exact=True).click()
    wait_for(page, 'text(".wb-state") === "paused"')
    panel.get_by_role("button", name="Step", exact=True).click()
    panel.get_by_role("button", name="Run", exact=True).click()
    wait_for(page, 'text(".wb-state") === "running"')
