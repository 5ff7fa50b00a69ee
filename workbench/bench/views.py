"""`workbench bench views`: views of a long run in headless Chromium: bytes, time, smoothness.

The real scheduler and cache run with a model that costs nothing and writes text; each view of their
trace is put into a bare page, with a model that keeps what is saved. A real JupyterLab is driven by
`tests/browser/test_kv_cache_view.py`, with the same two measurements.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import time
from pathlib import Path
from typing import Any

from workbench.bench.view_trace import make_trace
from workbench.describe import human_bytes
from workbench.errors import InvalidValue, MissingExtra
from workbench.trace import Trace
from workbench.views import BatchTimeline, KVCacheView, TokenView, View

VIEWS: dict[str, type[View]] = {
    "kv": KVCacheView,
    "timeline": BatchTimeline,
    "tokens": TokenView,
}
# Asked for; the trial behind them is in DECISIONS.md.
BOUNDS = {
    "key to paint, p95": 50.0,
    "frame gap while dragging, p95": 17.5,
    "first paint": 2000.0,
    "sent": 8e6,
}

# Times from a key to the frame that shows its step: the widget draws in an animation frame, and a
# message posted in the next one is handled after that frame was painted.
WATCH_KEYS = """() => {
  const view = document.querySelector(".wb-view");
  const seen = (window.keyTimes = []);
  let pressed = null;
  addEventListener("keydown", () => (pressed = performance.now()), { capture: true });
  view.addEventListener("workbench:drawn", () => {
    if (pressed === null) return;
    const from = pressed;
    pressed = null;
    requestAnimationFrame(() => {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => seen.push(performance.now() - from);
      port2.postMessage(0);
    });
  });
}"""
# Gaps between animation frames, and how often the widget drew, until `stopDrag()`.
WATCH_DRAG = """() => {
  const gaps = [];
  let [last, on, drawn] = [null, true, 0];
  const view = document.querySelector(".wb-view");
  const count = () => drawn++;
  view.addEventListener("workbench:drawn", count);
  const tick = (now) => {
    if (last !== null) gaps.push(now - last);
    last = now;
    if (on) requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
  window.stopDrag = () => {
    on = false;
    view.removeEventListener("workbench:drawn", count);
    return { gaps, drawn };
  };
}"""
_SHOW = """async ([code, css, state]) => {
  const started = performance.now();
  document.head.appendChild(document.createElement("style")).textContent = css;
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  for (const [name, value] of Object.entries(state))
    if (value?.bytes !== undefined)
      state[name] = new DataView(Uint8Array.from(atob(value.bytes), (c) => c.charCodeAt(0)).buffer);
  window.saves = 0;
  const model = { get: (name) => state[name], set: (name, value) => (state[name] = value),
    save_changes: () => window.saves++, on() {}, off() {} };
  const view = (await import(url)).default;
  view.render({ model, el: document.body.appendChild(document.createElement("div")) });
  const panel = document.querySelector(".wb-view");
  await new Promise((drawn) => panel.addEventListener("workbench:drawn", drawn, { once: true }));
  await new Promise(requestAnimationFrame);
  return performance.now() - started;
}"""


def percentile(values: list[float], share: float) -> float:
    """Return the value that `share` of the values do not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def press_keys(page: Any, count: int) -> list[float]:
    """Press an arrow key `count` times on the slider; return ms from each to the painted step."""
    page.evaluate(WATCH_KEYS)
    page.locator(".wb-view .wb-slider").focus()
    for press in range(count + 2):
        page.keyboard.press("ArrowRight" if press % 4 else "PageDown")
        page.wait_for_function("n => window.keyTimes.length > n", arg=press)
    times: list[float] = page.evaluate("window.keyTimes")
    return times[2:]


def drag(page: Any, moves: int = 120) -> tuple[list[float], int]:
    """Drag the slider from end to end; return ms between frames, and how often it was drawn."""
    box = page.locator(".wb-view .wb-slider").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 8, y)
    page.mouse.down()
    page.evaluate(WATCH_DRAG)
    for move in range(moves):
        page.mouse.move(box["x"] + 8 + (box["width"] - 16) * move / moves, y)
        page.wait_for_timeout(8)  # a hand moves no faster than frames come
    page.mouse.up()
    seen = page.evaluate("window.stopDrag()")
    return seen["gaps"], seen["drawn"]


def show(page: Any, view: View) -> float:
    """Put a view into an empty page; return ms to its first painted frame."""
    state = {
        name: {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in view.get_state().items()
        if name not in ("_esm", "_css", "layout")
    }
    page.set_content("<!doctype html><meta charset=utf-8><body></body>")
    plain = json.loads(json.dumps(state))
    return float(page.evaluate(_SHOW, [view._esm, view._css, plain]))


def main(argv: list[str] | None = None, *, browser: Path | None = None) -> int:
    """Print the table; exit code 1 if a figure is over its bound. browser: a Chromium."""
    parser = argparse.ArgumentParser(prog="workbench bench views", description=__doc__)
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--sequences", type=int, default=512)
    parser.add_argument("--view", choices=(*VIEWS, "all"), default="all")
    parser.add_argument("--keys", type=int, default=60)
    arguments = parser.parse_args(argv)
    if browser is None:
        raise InvalidValue("browser", None, "there is no Chromium on this machine", "Install one.")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise MissingExtra("bench views", "playwright", "dev") from error
    trace = make_trace(arguments.blocks, arguments.steps, arguments.sequences)
    print(f"{len(trace)} events, {arguments.blocks} blocks, {arguments.steps} steps")
    kinds = VIEWS if arguments.view == "all" else {arguments.view: VIEWS[arguments.view]}
    within = True
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        chromium = playwright.chromium.launch(executable_path=str(browser), args=options)
        for kind in kinds.values():
            page = chromium.new_page(viewport={"width": 1280, "height": 900})
            within &= _measure(page, kind, trace, arguments.keys)
            page.close()
        chromium.close()
    return 0 if within else 1


def _measure(page: Any, kind: type[View], trace: Trace, num_keys: int) -> bool:
    """Print one view's figures; return whether all are within their bounds."""
    start = time.perf_counter()
    view = kind(trace)
    made = time.perf_counter() - start
    print(f"\n{view!r}"[:120])
    first = show(page, view)
    keys = press_keys(page, num_keys)
    page.evaluate("window.saves = 0")
    gaps, drawn = drag(page)
    saves = page.evaluate("window.saves")
    figures = {
        "key to paint, p95": percentile(keys, 0.95),
        "frame gap while dragging, p95": percentile(gaps, 0.95),
        "first paint": first,
        "sent": float(_num_bytes(view)),
    }
    for name, figure in figures.items():
        text = human_bytes(figure) if name == "sent" else f"{figure:.1f} ms"
        bound = human_bytes(BOUNDS[name]) if name == "sent" else f"{BOUNDS[name]:.1f} ms"
        print(f"{name:<32} {text:>10}   bound {bound}")
    print(f"{'key to paint, median':<32} {statistics.median(keys):>7.1f} ms   n={len(keys)}")
    print(f"{'drawn while dragging':<32} {drawn:>10}   in {len(gaps)} frames, {saves} messages")
    print(f"{'log made from the trace':<32} {made:>8.2f} s")
    return all(figure <= BOUNDS[name] for name, figure in figures.items())


def _num_bytes(view: View) -> int:
    """Return the bytes of a view's log, as they are sent."""
    return sum(len(value) for value in view.get_state().values() if isinstance(value, bytes))
