"""What every view has from `panel.js`, in a bare page: keys, mouse, one step, errors, an end."""

from __future__ import annotations

from typing import Any

import pytest
from view_page import add, show

from workbench.events import StepDone
from workbench.trace import Trace
from workbench.views.base import View
from workbench.views.esm import compose

pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
]

BUILD = """
function build(panel) {
  const { canvas: drawing, context, fit } = canvas(panel.body, "dial");
  drawing.style.width = "300px";
  drawing.style.height = "40px";
  panel.listen(drawing, "mousemove", (event) =>
    panel.tooltip.show(event, [["step", String(panel.cursor.step)], ["text", EVIL]]));
  panel.listen(drawing, "mouseleave", () => panel.tooltip.hide());
  return {
    draw(step, colours) {
      if (step === 5) throw new Error("five is out of order");
      const { width, height } = fit();
      context.fillStyle = css(colours.accent);
      context.fillRect(0, 0, (width * step) / panel.cursor.last, height);
      return `step ${step}, dark ${colours.dark}`;
    },
  };
}
const EVIL = "<img src=x onerror='window.harmed = 1'><script>window.harmed = 1</script>";
export default mount("dial", build);
"""


class Dial(View):
    """A bar as long as the step."""

    _esm = compose("panel") + BUILD

    def update(self) -> tuple[int, int]:
        return 0, len(self.trace)

    def summary(self) -> str:
        return f"step {self.step}"


def trace_of(steps: int) -> Trace:
    trace = Trace()
    for step in range(1, steps + 1):
        trace(StepDone(step, (), {}, 0))
    return trace


def drawn(page: Any, step: int, panel: int = 0) -> None:
    """Wait until a panel has drawn this step."""
    page.wait_for_function(
        "([n, step]) => document.querySelectorAll('.wb-view')[n].dataset.step == step",
        arg=[panel, step],
        timeout=20_000,
    )


def test_keys_and_mouse_scrub_every_panel_of_a_trace(page: Any) -> None:
    trace = trace_of(100)
    show(page, Dial(trace))
    add(page, Dial(trace))
    add(page, Dial(trace_of(100)))
    slider = page.locator(".wb-slider").first
    slider.focus()
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowRight"):
        page.keyboard.press(key)
    drawn(page, 12)
    drawn(page, 12, panel=1)
    page.keyboard.press("End")
    drawn(page, 100, panel=1)
    page.locator("canvas").nth(1).focus()
    page.keyboard.press("ArrowLeft")
    drawn(page, 99)
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2, steps=8)
    page.mouse.up()
    drawn(page, 50, panel=1)
    drawn(page, 0, panel=2)
    page.keyboard.press("Home")
    page.keyboard.press(" ")  # plays to the end by itself
    page.wait_for_function("document.querySelector('.wb-view').dataset.step > 2")
    page.keyboard.press(" ")
    assert page.locator(".wb-play").first.get_attribute("aria-label") == "Play"


def test_text_is_text_in_a_tooltip(page: Any) -> None:
    show(page, Dial(trace_of(3)))
    page.locator("canvas").hover()
    shown = page.locator(".wb-tooltip")
    shown.wait_for(state="visible")
    assert "<script>window.harmed = 1</script>" in shown.inner_text()
    page.mouse.move(5, 800)
    shown.wait_for(state="hidden")
    assert page.evaluate("window.harmed === undefined")


def test_an_error_in_the_browser_or_the_kernel_is_shown_in_the_panel(page: Any) -> None:
    show(page, Dial(trace_of(9)))
    problem = page.locator(".wb-problem")
    page.evaluate("window.model.set('step', 5)")
    problem.wait_for(state="visible")
    assert problem.inner_text() == "dial: five is out of order"
    page.evaluate("window.model.set('step', 6)")
    problem.wait_for(state="hidden")
    page.evaluate("window.model.set('problem', 'ValueError: <b>no</b>')")
    assert problem.inner_text() == "ValueError: <b>no</b>"
    page.evaluate("window.model.set('problem', '')")
    problem.wait_for(state="hidden")


@pytest.mark.parametrize("dark", [False, True])
def test_the_theme_is_read_and_read_again(page: Any, dark: bool) -> None:
    show(page, Dial(trace_of(3)), dark=dark)
    label = "() => document.querySelector('canvas').getAttribute('aria-label')"
    assert page.evaluate(label) == f"step 0, dark {str(dark).lower()}"
    page.evaluate("""() => {
      document.body.style.setProperty("--jp-layout-color1", "#101010");
      document.body.dataset.jpThemeName = "Another Dark";
    }""")
    page.wait_for_function(f"({label})() === 'step 0, dark true'")
    page.evaluate("""() => {
      document.body.style.setProperty("--jp-layout-color1", "white");
      document.body.dataset.jpThemeName = "Light";
    }""")
    page.wait_for_function(f"({label})() === 'step 0, dark false'")


def test_a_panel_that_is_left_leaves_nothing(page: Any) -> None:
    show(page, Dial(trace_of(9)))
    page.evaluate("window.leave()")
    assert page.locator(".wb-view").count() == 0
    left = """() => [globalThis[Symbol.for("workbench.cursors")].size,
      [...window.model.handlers.values()].flat().length]"""
    assert page.evaluate(left) == [0, 0]
