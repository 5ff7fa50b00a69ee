"""What every view has from `panel.js`, in a bare page: keys, mouse, one step, errors, an end."""

from __future__ import annotations

from typing import Any

import pytest
from browsing import drawn, expect, mouse_to
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
    mouse_to(page, slider, 0.9, 0.5)
    page.mouse.down()
    expect(slider).not_to_have_value("99")
    mouse_to(page, slider, 0.5, 0.5)
    page.mouse.up()
    drawn(page, 50, panel=1)
    drawn(page, 0, panel=2)


def test_space_plays_and_stops(page: Any) -> None:
    show(page, Dial(trace_of(10_000)))  # more than it can play while we look
    play = page.locator(".wb-play")
    page.locator(".wb-slider").focus()
    page.keyboard.press(" ")
    expect(play).to_have_attribute("aria-label", "Pause")
    page.wait_for_function("document.querySelector('.wb-view').dataset.step > 2")
    page.keyboard.press(" ")
    expect(play).to_have_attribute("aria-label", "Play")
    stopped = page.locator(".wb-slider").input_value()
    drawn(page, int(stopped))


def test_text_is_text_in_a_tooltip(page: Any) -> None:
    show(page, Dial(trace_of(3)))
    page.locator("canvas").hover()
    shown = page.locator(".wb-tooltip")
    shown.wait_for(state="visible")
    expect(shown).to_contain_text("<script>window.harmed = 1</script>")
    page.mouse.move(5, 800)
    shown.wait_for(state="hidden")
    assert page.evaluate("window.harmed === undefined")


def test_an_error_in_the_browser_or_the_kernel_is_shown_in_the_panel(page: Any) -> None:
    show(page, Dial(trace_of(9)))
    problem = page.locator(".wb-problem")
    page.evaluate("window.model.set('step', 5)")
    problem.wait_for(state="visible")
    expect(problem).to_have_text("dial: five is out of order")
    page.evaluate("window.model.set('step', 6)")
    problem.wait_for(state="hidden")
    page.evaluate("window.model.set('problem', 'ValueError: <b>no</b>')")
    expect(problem).to_have_text("ValueError: <b>no</b>")
    page.evaluate("window.model.set('problem', '')")
    problem.wait_for(state="hidden")


@pytest.mark.parametrize("dark", [False, True])
def test_the_theme_is_read_and_read_again(page: Any, dark: bool) -> None:
    show(page, Dial(trace_of(3)), dark=dark)
    canvas = page.locator("canvas")
    expect(canvas).to_have_attribute("aria-label", f"step 0, dark {str(dark).lower()}")
    page.evaluate("""() => {
      document.body.style.setProperty("--jp-layout-color1", "#101010");
      document.body.dataset.jpThemeName = "Another Dark";
    }""")
    expect(canvas).to_have_attribute("aria-label", "step 0, dark true")
    page.evaluate("""() => {
      document.body.style.setProperty("--jp-layout-color1", "white");
      document.body.dataset.jpThemeName = "Light";
    }""")
    expect(canvas).to_have_attribute("aria-label", "step 0, dark false")


def test_a_panel_that_is_left_leaves_nothing(page: Any) -> None:
    show(page, Dial(trace_of(9)))
    page.evaluate("window.leave()")
    expect(page.locator(".wb-view")).to_have_count(0)
    left = """() => [globalThis[Symbol.for("workbench.cursors")].size,
      [...window.model.handlers.values()].flat().length]"""
    assert page.evaluate(left) == [0, 0]
