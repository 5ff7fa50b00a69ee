"""Timeline, tokens, drafts and KV cache of one run in a real JupyterLab: one step, two themes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from recorded_run import RecordedRun

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("browser"),  # one server, one worker
]

RUN = """
import workbench as wb
llm = wb.LLM("tinypy", max_batch_tokens=64, max_sequences=4, num_blocks=48, block_size=8)
prompts = ["def fib(n):\\n    ", "<script>window.harmed = 1</script>", "class Stack:\\n", "x = ["]
with wb.Trace.record(llm.engine) as trace:
    for seed, prompt in enumerate(prompts * 2):
        params = wb.SamplingParams(max_tokens=16, temperature=0.8, seed=seed, logprobs=3)
        llm.engine.add(prompt, params)
    llm.engine.run()
"""
CELLS = [
    RUN,
    "timeline = wb.views.BatchTimeline(trace)\ntimeline",
    "wb.views.KVCacheView(trace)",
    "tokens = wb.views.TokenView(trace)\ntokens",
    "wb.views.SpeculationTree(wb.Trace.load('drafts.trace'))",
]
STEP = """(name) => Number(document.querySelector(`.jp-OutputArea .wb-${name}`)?.dataset.step)"""

# JupyterLab's layout is gone for a moment while it loads a theme, and a canvas with it.
PAINTED = """(selector) => {
  const c = document.querySelector(`.jp-OutputArea ${selector}`);
  if (!c?.width || !c.height) return false;
  const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height);
  return new Uint32Array(data.buffer).some((pixel) => pixel !== 0);
}"""


def step_of(page: Any, name: str, step: int) -> None:
    page.wait_for_function(f"([name, step]) => ({STEP})(name) === step", arg=[name, step])


def darkness(page: Any) -> float:
    """Return how bright the timeline's output is, 0 to 255."""
    return float(
        page.locator(".wb-batch-timeline").evaluate(
            "e => getComputedStyle(e).backgroundColor.match(/\\d+/g).slice(0, 3)"
            ".reduce((sum, part) => sum + Number(part), 0) / 3"
        )
    )


def test_a_run_seen_by_four_panels(
    repository: Path,
    tmp_path: Path,
    lab: Any,
    run_notebook: Callable[[Path], list[Any]],
    page: Any,
) -> None:
    RecordedRun(6, seed=2, drafts="tree", draft=(4, 12)).run(40).save(lab.folder / "drafts.trace")
    path = tmp_path / "run_views.ipynb"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)
    cells = run_notebook(path)
    errors = [o for c in cells for o in c.get("outputs", []) if o["output_type"] == "error"]
    assert errors == []
    shots = repository / ".artifacts" / "browser"
    canvas = page.locator(".jp-OutputArea .wb-timeline")
    canvas.scroll_into_view_if_needed()
    page.wait_for_function(f"({STEP})('batch-timeline') > 0")

    box = canvas.bounding_box()
    page.mouse.click(box["x"] + 105, box["y"] + 40)  # the first step
    step_of(page, "batch-timeline", 1)
    detail = page.locator(".wb-detail")
    assert detail.inner_text().startswith("Step 1: ")
    assert "<script>" in detail.inner_text().replace("·", "").replace("\n", "")
    page.mouse.move(box["x"] + 110, box["y"] + 150)
    page.locator(".wb-batch-timeline .wb-tooltip").wait_for(state="visible")
    assert "r0" in page.locator(".wb-batch-timeline .wb-tooltip").inner_text()

    canvas.focus()
    page.keyboard.press("ArrowRight")  # JupyterLab has these keys for itself in command mode
    page.keyboard.press("Shift+ArrowRight")
    step_of(page, "batch-timeline", 12)
    page.screenshot(path=str(shots / "run_views_light.png"))
    for name in ("kv-cache", "token-view"):
        panel = page.locator(f".jp-OutputArea .wb-{name}")
        panel.scroll_into_view_if_needed()
        step_of(page, name, 12)
    page.locator(".wb-token-view .wb-slider").focus()
    page.keyboard.press("End")
    page.locator(".wb-token-view .wb-t").last.click()
    canvas.scroll_into_view_if_needed()
    page.wait_for_function(f"({STEP})('batch-timeline') > 12")

    bright = darkness(page)
    page.evaluate(
        "void window.jupyterapp.commands.execute('apputils:change-theme', "
        "{theme: 'JupyterLab Dark'})"
    )
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    page.wait_for_function(PAINTED, arg=".wb-timeline")
    page.screenshot(path=str(shots / "run_views_dark.png"))
    assert darkness(page) < 60 < bright
    tree = page.locator(".jp-OutputArea .wb-speculation-tree")
    tree.scroll_into_view_if_needed()
    page.wait_for_function(PAINTED, arg=".wb-tree")
    page.screenshot(path=str(shots / "run_views_drafts.png"))
    assert page.locator(".wb-problem:visible").count() == 0
    assert page.evaluate("window.harmed === undefined")
