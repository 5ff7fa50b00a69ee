"""What the browser tests share: waiting for what a page is still to show, and how long at most.

A page answers later than it is asked: a key, a message of the kernel and an animation frame all
take their time. So nothing is read from it and then compared: `expect(locator)` and
`page.wait_for_function` look again until it holds, for at most `LIMIT_MS`. A pointer goes to a
place in an element (`locator.click(position=…)`, `hover`), which waits until the element rests,
not to coordinates that were read before.
"""

from __future__ import annotations

import os
import re
from typing import Any

from playwright.sync_api import expect

__all__ = [
    "LIMIT_MS",
    "SLOWER",
    "can_be_slowed",
    "drawn",
    "expect",
    "mouse_to",
    "set_speed",
    "set_theme",
    "step_back",
]

SLOWER = float(os.environ.get("WORKBENCH_SLOW_PAGE", "1"))
LIMIT_MS = 60e3 * max(1.0, SLOWER / 4)
expect.set_options(timeout=LIMIT_MS)

_THEME = """name => void window.jupyterapp.commands.execute('apputils:change-theme',
  {theme: `JupyterLab ${name}`})"""  # `void`: the promise may never settle for the driver
_CAME = """name => document.body.dataset.jpThemeName === `JupyterLab ${name}`
  && !document.querySelector('#jupyterlab-splash')"""
_NOTE_VALUE = """slider => document.addEventListener("keydown",
  () => (slider.dataset.before = slider.value), { capture: true, once: true })"""


# Animation frames come late by `frameLate`: a driver's question is then answered before a drawing
# that was asked for earlier, as where the browser's other processes do not get a core.
_LATE_FRAMES = """(() => {
  const [ask, drop] = [requestAnimationFrame, cancelAnimationFrame].map((f) => f.bind(window));
  const [ends, run] = [new Map(), (id, f) => (time) => (ends.delete(id), f(time))];
  let last = 0;
  const begin = (id, f) => {
    const frame = ask(run(id, f));
    ends.set(id, () => drop(frame));
  };
  window.frameLate = 0;
  window.requestAnimationFrame = (f) => {
    const id = ++last;
    if (window.frameLate) {
      const timer = setTimeout(() => begin(id, f), window.frameLate);
      ends.set(id, () => clearTimeout(timer));
    } else begin(id, f);
    return id;
  };
  window.cancelAnimationFrame = (id) => (ends.get(id)?.(), void ends.delete(id));
})()"""


def can_be_slowed(page: Any) -> None:
    """Prepare a fresh page for `set_speed`, if WORKBENCH_SLOW_PAGE asks for it."""
    if SLOWER > 1:
        page.add_init_script(_LATE_FRAMES)
        page.goto("about:blank")


def set_speed(page: Any, slower: float) -> None:
    """Let a page's own thread run `slower` times slower, and frames come late by 50 ms for each.

    1: as fast as the machine. Does nothing unless WORKBENCH_SLOW_PAGE is set.
    """
    if SLOWER > 1:
        session = page.context.new_cdp_session(page)
        session.send("Emulation.setCPUThrottlingRate", {"rate": slower})
        page.evaluate("late => void (window.frameLate = late)", 50 * (slower - 1))


def drawn(page: Any, step: int, panel: int = 0) -> None:
    """Wait until a panel, by its place in the page, has drawn a step."""
    expect(page.locator(".wb-view").nth(panel)).to_have_attribute("data-step", str(step))


def set_theme(page: Any, name: str) -> None:
    """Choose JupyterLab's "Light" or "Dark" theme; waits until it and the layout are there."""
    page.evaluate(_THEME, name)
    page.wait_for_function(_CAME, arg=name)


def mouse_to(page: Any, target: Any, across: float, down: float) -> tuple[float, float]:
    """Move the mouse to a share of an element's width and height; return where that is."""
    target.hover()  # waits until it rests
    box = target.bounding_box()
    x, y = box["x"] + across * box["width"], box["y"] + down * box["height"]
    page.mouse.move(x, y)
    return x, y


def step_back(page: Any, panel: Any) -> None:
    """Press ArrowLeft on a panel's slider and wait until the step before is drawn.

    The step that is left is read as the key comes: a live run may go on until then.
    """
    slider = panel.get_by_label("step", exact=True)
    slider.focus()
    slider.evaluate(_NOTE_VALUE)
    page.keyboard.press("ArrowLeft")
    expect(slider).to_have_attribute("data-before", re.compile(r"\d"))
    before = int(slider.get_attribute("data-before"))
    expect(panel).to_have_attribute("data-step", str(before - 1))
