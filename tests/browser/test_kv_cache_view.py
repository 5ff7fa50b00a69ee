"""The KV cache view in a real JupyterLab: scrubbed, hovered, live, reopened without a kernel.

How fast it is says `workbench bench views`; here only what must hold on any machine.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browsing import LIMIT_MS, expect, mouse_to, set_theme
from nbclient import NotebookClient
from nbformat.sign import NotebookNotary

from workbench.bench.views import drag, percentile, press_keys

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),  # one server, one worker
]

RUN = """
import workbench as wb
model = wb.load_model("tinypy")
cache = wb.KVCache.for_model(model, num_blocks=64, block_size=8)
scheduler = wb.Scheduler(cache, wb.SchedulerConfig(max_batch_tokens=64, max_sequences=4))
engine = wb.Engine(model, cache, scheduler, wb.Runner(model, cache, "sdpa"))
EVIL = "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'>"
params = wb.SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
"""
SHOW = """
with wb.Trace.record(engine) as trace:
    engine.generate([EVIL, EVIL + " again"], params)
view = wb.views.KVCacheView(trace)
view
"""
STEP = "print(view.step, view.selected)"
LIVE = """
import threading
view = wb.views.KVCacheView()
engine.bus.subscribe(view)
view
"""
LIVE_RUN = "engine.generate([EVIL, EVIL + ' again'], params); print(engine.scheduler.step)"
PANEL = ".jp-OutputArea .wb-kv-cache"
MEASURE = """
from workbench.bench.view_trace import make_trace
view = wb.views.KVCacheView(make_trace(100_000, {steps}, 512))
print(len(view.history) + len(view.tail))
view.step = view.first_step
view
"""
STEPS = 120

# When the second cell had run and when its view was first drawn, as `firstPaint`, in ms.
WATCH_FIRST = f"""(() => {{
  const seen = {{}};
  const look = () => {{
    const cells = window.jupyterapp?.shell?.currentWidget?.content?.widgets;
    if (cells?.[1]?.model?.executionCount) seen.ran ??= performance.now();
    if (document.querySelector("{PANEL}[data-step]")) seen.drawn ??= performance.now();
    if (seen.ran && seen.drawn) window.firstPaint = seen.drawn - seen.ran;
    else requestAnimationFrame(look);
  }};
  requestAnimationFrame(look);
}})()"""
# Time stands still for whoever waits for the hand to rest (150 ms), until `release()`; who waited
# before may end first.
HOLD = """async () => {
  const [real, held] = [window.setTimeout, []];
  window.setTimeout = (f, ms, ...rest) => (ms === 150 ? -held.push(f) : real(f, ms, ...rest));
  window.release = () => {
    window.setTimeout = real;
    held.forEach((f) => f());
  };
  await new Promise((rested) => real(rested, 151));
}"""


@pytest.fixture
def shots(repository: Path) -> Path:
    """Where screenshots go."""
    folder = repository / ".artifacts" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def run_cells(
    run_notebook: Callable[[Path], list[Any]], tmp_path: Path
) -> Callable[..., list[Any]]:
    """Return a function that runs these cells in JupyterLab, and returns them."""

    def run(*sources: str) -> list[Any]:
        path = tmp_path / "kv_view.ipynb"
        nbformat.write(notebook_of(*sources), path)
        cells = run_notebook(path)
        outputs = [o for cell in cells for o in cell.get("outputs", [])]
        assert [o for o in outputs if o["output_type"] == "error"] == []
        return cells

    return run


@pytest.fixture
def sent(page: Any) -> list[Any]:
    """What the page says to the kernel, message by message."""
    frames: list[Any] = []
    note = lambda frame: frames.append(frame)  # noqa: E731 - playwright marks what it calls
    page.on("websocket", lambda socket: socket.on("framesent", note))
    return frames


def notebook_of(*sources: str) -> Any:
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    return notebook


def told_the_kernel(sent: list[Any]) -> int:
    """Return how many messages of widgets the kernel got."""
    texts = [frame if isinstance(frame, str) else frame.decode("latin-1") for frame in sent]
    return sum('"comm_msg"' in text for text in texts)


def wait_drawn(page: Any, condition: str) -> None:
    """Wait until the step that the panel has drawn, `step`, fulfils a condition."""
    test = f"() => {{ const panel = document.querySelector('{PANEL}');"
    test += f" const step = Number(panel?.dataset.step); return {condition}; }}"
    page.wait_for_function(test)


def run_cell(page: Any, index: int) -> str:
    """Run one more cell and return the text that it printed."""
    page.evaluate(
        """index => { const notebook = window.jupyterapp.shell.currentWidget.content;
          notebook.activeCellIndex = index;
          notebook.widgets[index].model.clearExecution();
          void window.jupyterapp.commands.execute('notebook:run-cell'); }""",
        index,
    )
    read = """index => { const model = window.jupyterapp.shell.currentWidget.content
      .widgets[index].model; const out = model.outputs.toJSON();
      const text = out.map((o) => [].concat(o.text).join('')).join('');
      return model.executionCount !== null && text.endsWith('\\n') ? text : ''; }"""
    return str(page.wait_for_function(read, arg=index).json_value())


def wait_told(page: Any, index: int, holds: Callable[[str], bool]) -> None:
    """Run a cell until what it prints holds: the kernel is told of a step when the hand rests."""
    end = time.monotonic() + LIMIT_MS / 1e3
    while not holds(text := run_cell(page, index)):
        assert time.monotonic() < end, text


def hover_until(page: Any, text: str) -> str:
    """Move over the blocks until the tooltip has this text; return all of it."""
    grid = page.locator(f"{PANEL} .wb-grid").first
    tooltip = page.locator(f"{PANEL} .wb-tooltip").first
    seen = []
    for column in range(int(grid.bounding_box()["width"] / 38)):
        grid.hover(position={"x": 12 + column * 38, "y": 12})
        about = re.compile(rf"^block\s{column}\s")
        expect(tooltip).to_have_text(about, use_inner_text=True)
        seen.append(tooltip.inner_text())
        if text in seen[-1]:
            return seen[-1]
    raise AssertionError(f"{text!r} is in none of {seen}")


def test_scrubbed_hovered_and_told_to_the_kernel(
    run_cells: Any, page: Any, sent: list[Any], shots: Path
) -> None:
    run_cells(RUN, SHOW, STEP)
    corner = f"""() => {{ const grid = document.querySelector('{PANEL} .wb-grid');
      const edge = grid.getContext('2d').getImageData(grid.width - 1, 0, 1, 1).data;
      return Math.max(...edge.slice(0, 3)); }}"""
    page.locator(PANEL).first.scroll_into_view_if_needed()
    page.locator(f"{PANEL} .wb-slider").focus()
    page.keyboard.press("Escape")  # command mode, where JupyterLab has arrow keys of its own
    page.locator(f"{PANEL} .wb-slider").focus()
    page.keyboard.press("Home")
    wait_drawn(page, "step === 0")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    wait_drawn(page, "step === 2")
    page.keyboard.press("End")
    page.keyboard.press("PageDown")
    wait_drawn(page, "step > 10 && step < 24")
    words = hover_until(page, "<script>")
    assert "window.har" in words
    page.locator(f"{PANEL} .wb-grid").first.click(position={"x": 12, "y": 12})
    expect(page.locator(f"{PANEL} .wb-head")).to_contain_text("holds")
    page.wait_for_function(f"({corner})() > 200")  # drawn on the light paper
    page.screenshot(path=str(shots / "kv_view_light.png"))
    step = page.locator(PANEL).first.get_attribute("data-step")
    wait_told(page, 2, lambda told: told.split()[0] == step and told.split()[1] != "None")

    set_theme(page, "Dark")
    page.wait_for_function(f"({corner})() < 60")  # drawn on the dark paper
    page.screenshot(path=str(shots / "kv_view_dark.png"))

    slider = page.locator(f"{PANEL} .wb-slider")
    page.evaluate(HOLD)
    before = told_the_kernel(sent)
    x, y = mouse_to(page, slider, 0.5, 0.5)
    page.mouse.down()
    page.mouse.move(x - 0.49 * slider.bounding_box()["width"], y, steps=20)
    wait_drawn(page, "step < 3")
    assert told_the_kernel(sent) == before, "the kernel was told at each tick"
    page.mouse.up()
    page.evaluate("window.release()")
    wait_told(page, 2, lambda told: int(told.split()[0]) < 3)
    assert told_the_kernel(sent) > before
    assert page.evaluate("window.harmed === undefined")


def test_live_from_a_cell_and_back_in_time(run_cells: Any, page: Any, shots: Path) -> None:
    cells = run_cells(RUN, LIVE, LIVE_RUN)
    last = int("".join(cells[2]["outputs"][0]["text"]))
    wait_drawn(page, f"step === {last}")
    panel, slider = page.locator(PANEL), page.locator(f"{PANEL} .wb-slider")
    expect(panel.locator(".wb-live")).to_have_attribute("aria-pressed", "true")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    wait_drawn(page, f"step === {last - 1}")
    later = int(run_cell(page, 2))
    assert later > last
    expect(slider).to_have_attribute("max", str(later))
    expect(slider).to_have_value(str(last - 1))  # who looks back is not pulled to the end
    expect(panel).to_have_attribute("data-step", str(last - 1))
    panel.locator(".wb-live").click()
    wait_drawn(page, f"step === {later}")
    page.screenshot(path=str(shots / "kv_view_live.png"))


@pytest.mark.parametrize("trusted", [True, False])
def test_reopened_without_its_kernel(
    lab: Any, page: Any, tmp_path: Path, shots: Path, trusted: bool
) -> None:
    notebook = notebook_of(RUN, SHOW)
    NotebookClient(notebook, timeout=120).execute()
    assert len(nbformat.writes(notebook)) < 400_000
    name = f"reopened_{trusted}.ipynb"
    if trusted:
        NotebookNotary(data_dir=str(lab.data)).sign(notebook)
    nbformat.write(notebook, lab.folder / name)
    page.goto(lab.address(name), wait_until="commit")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    if not trusted:
        picture = page.locator(".jp-OutputArea img").first
        picture.wait_for(state="visible")
        expect(picture).to_have_attribute("alt", re.compile("blocks used"))
        expect(page.locator(PANEL)).to_have_count(0)
    else:
        wait_drawn(page, "step > 0")
        page.locator(f"{PANEL} .wb-slider").focus()
        page.keyboard.press("Home")
        wait_drawn(page, "step === 0")
        page.keyboard.press("End")
        wait_drawn(page, "step > 20")
        page.keyboard.press("PageDown")
        wait_drawn(page, "step > 10 && step < 24")
        hover_until(page, "<script>")
    page.screenshot(path=str(shots / f"kv_view_reopened_{'trusted' if trusted else 'not'}.png"))
    assert page.evaluate("window.harmed === undefined")


def test_a_hundred_thousand_blocks(run_cells: Any, page: Any, sent: list[Any], shots: Path) -> None:
    page.add_init_script(WATCH_FIRST)
    cells = run_cells("import workbench as wb", MEASURE.format(steps=STEPS), STEP)
    num_bytes = int("".join(cells[1]["outputs"][0]["text"]))
    assert num_bytes < 8e6
    page.locator(f"{PANEL} .wb-scrubber").scroll_into_view_if_needed()
    wait_drawn(page, "window.firstPaint !== undefined")
    keys = press_keys(page, 24)
    step = page.locator(PANEL).first.get_attribute("data-step")
    wait_told(page, 2, lambda told: told.split()[0] == step)
    page.locator(f"{PANEL} .wb-slider").hover()  # what ran may have moved the notebook
    page.evaluate(HOLD)
    before = told_the_kernel(sent)
    gaps, drawn = drag(page, 60)
    wait_drawn(page, f"step > {STEPS - 10}")
    assert told_the_kernel(sent) == before, "the kernel was told at each tick"
    page.evaluate("window.release()")
    figures = {
        "sent, bytes": num_bytes,
        "first paint after the cell, ms": page.evaluate("window.firstPaint"),
        "key to paint, p95, ms": percentile(keys, 0.95),
        "frame gap while dragging, p95, ms": percentile(gaps, 0.95),
        "drawn": drawn,
    }
    (shots / "kv_view_figures.json").write_text(json.dumps(figures, indent=1))
    print(figures)
    page.screenshot(path=str(shots / "kv_view_large.png"))
