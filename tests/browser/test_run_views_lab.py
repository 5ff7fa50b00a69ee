"""Timeline, tokens, drafts and KV cache of one run in a real JupyterLab: one step, two themes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browsing import expect, set_theme
from recorded_run import RecordedRun

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
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
# How bright the timeline's output is, 0 to 255.
BRIGHTNESS = """getComputedStyle(document.querySelector(".wb-batch-timeline")).backgroundColor
  .match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3"""

# JupyterLab's layout is gone for a moment while it loads a theme, and a canvas with it.
PAINTED = """(selector) => {
  const c = document.querySelector(`.jp-OutputArea ${selector}`);
  if (!c?.width || !c.height) return false;
  const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height);
  return new Uint32Array(data.buffer).some((pixel) => pixel !== 0);
}"""


def step_of(page: Any, name: str, step: int) -> None:
    page.wait_for_function(f"([name, step]) => ({STEP})(name) === step", arg=[name, step])


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

    canvas.click(position={"x": 105, "y": 40})  # the first step
    step_of(page, "batch-timeline", 1)
    detail = page.locator(".wb-detail")
    expect(detail).to_have_text(re.compile("^Step 1: "))
    expect(detail).to_have_text(re.compile("<·?s·?c·?r·?i·?p·?t·?>"))
    canvas.hover(position={"x": 110, "y": 150})
    expect(page.locator(".wb-batch-timeline .wb-tooltip:visible")).to_contain_text("r0")

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

    page.wait_for_function(f"{BRIGHTNESS} > 60")
    set_theme(page, "Dark")
    page.wait_for_function(f"{BRIGHTNESS} < 60")
    page.wait_for_function(PAINTED, arg=".wb-timeline")
    page.screenshot(path=str(shots / "run_views_dark.png"))
    tree = page.locator(".jp-OutputArea .wb-speculation-tree")
    tree.scroll_into_view_if_needed()
    page.wait_for_function(PAINTED, arg=".wb-tree")
    page.screenshot(path=str(shots / "run_views_drafts.png"))
    expect(page.locator(".wb-problem:visible")).to_have_count(0)
    assert page.evaluate("window.harmed === undefined")
