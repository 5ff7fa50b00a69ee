"""The KV cache view in a real JupyterLab: scrubbed, hovered, live, reopened without a kernel.

How fast it is says `workbench bench views`; here only what must hold on any machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.sign import NotebookNotary

from workbench.bench.views import drag, percentile, press_keys

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(400),
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
# Time stands still for whoever waits for the hand to rest (150 ms), until `release()`.
HOLD = """() => {
  const [real, held] = [window.setTimeout, []];
  window.setTimeout = (f, ms, ...rest) => (ms === 150 ? -held.push(f) : real(f, ms, ...rest));
  window.release = () => {
    window.setTimeout = real;
    held.forEach((f) => f());
  };
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


def drawn_step(page: Any) -> int:
    return int(page.locator(PANEL).first.get_attribute("data-step"))


def wait_drawn(page: Any, condition: str) -> None:
    """Wait until the step that the panel has drawn, `step`, fulfils a condition."""
    test = f"() => {{ const panel = document.querySelector('{PANEL}');"
    test += f" const step = Number(panel?.dataset.step); return {condition}; }}"
    page.wait_for_function(test, timeout=30_000)


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
      const ran = model.executionCount !== null && out.length;
      return ran ? [].concat(out[0].text).join('') : ''; }"""
    page.wait_for_function(read, arg=index, timeout=60_000)
    return str(page.evaluate(read, index))


def hover_until(page: Any, text: str) -> str:
    """Move over the blocks until the tooltip has this text; return all of it."""
    box = page.locator(f"{PANEL} .wb-grid").first.bounding_box()
    seen = []
    for column in range(24):
        x = box["x"] + 12 + column * 38
        if x > box["x"] + box["width"]:
            break
        page.mouse.move(x, box["y"] + 12)
        tooltip = page.locator(f"{PANEL} .wb-tooltip").first
        tooltip.wait_for(state="visible", timeout=20_000)
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
    step = drawn_step(page)
    words = hover_until(page, "<script>")
    assert "window.har" in words
    page.locator(f"{PANEL} .wb-grid").first.click(position={"x": 12, "y": 12})
    page.wait_for_function(f"document.querySelector('{PANEL} .wb-head').textContent.match('holds')")
    page.wait_for_function(f"({corner})() > 200", timeout=20_000)  # drawn on the light paper
    page.screenshot(path=str(shots / "kv_view_light.png"))
    for _ in range(100):  # the step is told when the hand rests
        told, selected = run_cell(page, 2).split()
        if int(told) == step and selected != "None":
            break
    assert int(told) == step
    assert selected != "None"

    page.evaluate(
        "window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
    )
    page.wait_for_function(f"({corner})() < 60", timeout=20_000)  # drawn on the dark paper
    page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=30_000)
    page.screenshot(path=str(shots / "kv_view_dark.png"))

    slider = page.locator(f"{PANEL} .wb-slider").bounding_box()
    page.mouse.move(slider["x"] + slider["width"] * 0.5, slider["y"] + slider["height"] / 2)
    page.mouse.down()
    before = told_the_kernel(sent)
    page.evaluate(HOLD)
    page.mouse.move(slider["x"] + 10, slider["y"] + slider["height"] / 2, steps=20)
    wait_drawn(page, "step < 3")
    assert told_the_kernel(sent) == before, "the kernel was told at each tick"
    page.mouse.up()
    page.evaluate("window.release()")
    assert int(run_cell(page, 2).split()[0]) < 3
    assert told_the_kernel(sent) > before
    assert page.evaluate("window.harmed === undefined")


def test_live_from_a_cell_and_back_in_time(run_cells: Any, page: Any, shots: Path) -> None:
    cells = run_cells(RUN, LIVE, LIVE_RUN)
    last = int("".join(cells[2]["outputs"][0]["text"]))
    wait_drawn(page, f"step === {last}")
    assert page.locator(f"{PANEL} .wb-live").get_attribute("aria-pressed") == "true"
    page.locator(f"{PANEL} .wb-slider").focus()
    page.keyboard.press("ArrowLeft")
    wait_drawn(page, f"step === {last - 1}")
    later = int(run_cell(page, 2))
    assert later > last
    slider = f"document.querySelector('{PANEL} .wb-slider').max == {later}"
    page.wait_for_function(slider, timeout=30_000)
    assert drawn_step(page) == last - 1, "a reader who looks back was pulled to the end"
    page.locator(f"{PANEL} .wb-live").click()
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
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=90_000)
    if not trusted:
        picture = page.locator(".jp-OutputArea img").first
        picture.wait_for(state="visible", timeout=60_000)
        assert "blocks used" in picture.get_attribute("alt")
        assert page.locator(PANEL).count() == 0
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
    cells = run_cells("import workbench as wb", MEASURE.format(steps=STEPS))
    num_bytes = int("".join(cells[1]["outputs"][0]["text"]))
    assert num_bytes < 8e6
    page.locator(f"{PANEL} .wb-scrubber").scroll_into_view_if_needed()
    wait_drawn(page, "window.firstPaint !== undefined")
    keys = press_keys(page, 24)
    before = told_the_kernel(sent)
    page.evaluate(HOLD)
    gaps, drawn = drag(page, 60)
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
