"""Timeline, tokens and drafts in a bare page: click, hover, keys, zoom, shared step and request."""

from __future__ import annotations

import re
from typing import Any

import pytest
from browsing import drawn, expect
from recorded_run import SCRIPT, WORDS, RecordedRun
from view_page import add, show

from workbench.events import RequestAdded
from workbench.trace import Trace
from workbench.views import BatchTimeline, SpeculationTree, TokenView

pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
]


SCRIPT_ID = WORDS.index(SCRIPT)
PAINTED = """() => {
  const c = document.querySelector(".wb-view canvas");
  const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height);
  return new Uint32Array(data.buffer).some((pixel) => pixel !== 0);
}"""


@pytest.fixture
def trace() -> Trace:
    run = RecordedRun(12, seed=5, drafts="tree", logprobs=4, wanted=(30, 50), max_running=6)
    return run.run(60)


def place(x: float, y: float) -> dict[str, float]:
    """Return a place in an element, for a pointer."""
    return {"x": x, "y": y}


def column(timeline: Any, step: float, y: float, count: float = 60) -> dict[str, float]:
    """Return where a step is on the timeline's canvas, between names and edge; count: across."""
    width = timeline.bounding_box()["width"]
    return place(104 + (step - 0.5) * (width - 104 - 20) / count, y)


def hint(page: Any, beginning: str) -> None:
    """Wait until a visible tooltip's text begins so: a regular expression of lines."""
    shown = page.locator(".wb-tooltip:visible")
    expect(shown).to_have_text(re.compile(f"^{beginning}"), use_inner_text=True)


def card(page: Any, text: str) -> None:
    """Wait until the card of a token says this."""
    expect(page.locator(".wb-card")).to_contain_text(text, use_inner_text=True)


def test_a_click_goes_to_a_step_and_lists_its_batch(page: Any, trace: Trace) -> None:
    view = BatchTimeline(trace)
    show(page, view)
    timeline, detail = page.locator(".wb-timeline"), page.locator(".wb-detail")
    timeline.click(position=column(timeline, 20, 40))
    drawn(page, 20)
    expected = view.rows(20)
    num = expected["num"].sum()
    expect(detail).to_have_text(re.compile(f"^Step 20: {num} of at most 256 tokens"))
    rows = page.locator(".wb-batch tr")
    expect(rows).to_have_count(1 + len(expected))
    expect(rows.nth(1).locator("td").nth(1)).to_have_text(expected["request"][0])
    timeline.focus()
    page.keyboard.press("ArrowRight")
    drawn(page, 21)
    expect(detail).to_have_text(re.compile("^Step 21"))
    page.keyboard.press("Enter")
    detail.wait_for(state="hidden")
    page.keyboard.press("Enter")
    detail.wait_for(state="visible")


def test_text_of_a_prompt_is_text_everywhere(page: Any, trace: Trace) -> None:
    view = BatchTimeline(trace)
    added = next(e for e in trace.of(RequestAdded) if SCRIPT_ID in e.token_ids)
    columns = view.run.columns
    row = next(k for k, lane in enumerate(columns["row_lane"]) if lane == added.sequence_id)
    view.selected = added.sequence_id
    view.step = next(c for c in range(60) if row in view.run.rows_of(c)) + 1
    show(page, view)
    add(page, TokenView(trace))
    add(page, SpeculationTree(trace))
    page.locator(".wb-timeline").focus()
    page.keyboard.press("Enter")
    page.locator(".wb-detail").wait_for(state="visible")
    expect(page.locator(".wb-text")).to_contain_text(SCRIPT)
    expect(page.locator(".wb-detail")).to_contain_text(SCRIPT.replace(" ", "·"))
    assert page.evaluate("window.harmed === undefined")
    expect(page.locator(".wb-view script")).to_have_count(0)


def test_hovering_says_what_a_request_did(page: Any, trace: Trace) -> None:
    view = BatchTimeline(trace)
    show(page, view)
    timeline = page.locator(".wb-timeline")
    timeline.hover(position=column(timeline, 10, 60))
    hint(page, rf"step\s10\sbatch\s{view.rows(10)['num'].sum()} of 256 tokens")
    timeline.hover(position=column(timeline, 10, 150))  # the first lane
    hint(page, r"request\sr0 \(sequence 0\)")
    timeline.hover(position=place(20, 5))
    page.locator(".wb-tooltip").wait_for(state="hidden")


def test_zoom_pan_and_the_step_stays_in_view(page: Any, trace: Trace) -> None:
    show(page, BatchTimeline(trace))
    timeline = page.locator(".wb-timeline")
    timeline.focus()
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("+")
    drawn(page, 1)
    # 60 steps by three halvings: 7.5 steps across, so the first one is wide
    timeline.hover(position=column(timeline, 1, 60, 7.5))
    hint(page, r"step\s1\s")
    page.keyboard.press("End")
    drawn(page, 60)
    last = column(timeline, 7.5, 60, 7.5)
    timeline.hover(position=last)
    hint(page, r"step\s60\s")
    box = timeline.bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] + 200, box["y"] + 60, steps=5)
    page.mouse.up()
    timeline.hover(position=last)
    hint(page, r"step\s5[0-9]\s")
    drawn(page, 60)  # a drag is no click


def test_a_token_tells_how_it_came_and_goes_to_its_step(page: Any, trace: Trace) -> None:
    view = TokenView(trace)
    show(page, view)
    add(page, BatchTimeline(trace))
    table = view.tokens("r0")
    position = int(table.index[table["maker"] == "drafted"][0])
    token = page.locator(f".wb-t[data-position='{position}']")
    token.hover()
    step = int(table["step"][position])
    card(page, "drafted by medusa")
    card(page, f"step\n{step}")
    expect(page.locator(".wb-other")).to_have_count(4)
    percent = f"{100 * table['probability'][position]:.1f} %"
    expect(page.locator(".wb-chosen .wb-percent")).to_have_text(percent)
    token.click()
    drawn(page, step, panel=1)
    expect(page.locator(".wb-t.wb-later")).to_have_count(int((table["step"] > step).sum()))
    fresh = int((table["step"] == step).sum())
    assert fresh > 1
    expect(page.locator(".wb-t.wb-fresh")).to_have_count(fresh)
    page.keyboard.press("End")
    expect(page.locator(".wb-t.wb-later")).to_have_count(0)


def test_the_request_is_shared_by_all_panels(page: Any, trace: Trace) -> None:
    show(page, BatchTimeline(trace))
    add(page, TokenView(trace))
    page.locator(".wb-select").select_option("2")
    card(page, "request\nr2")
    page.locator(".wb-timeline").focus()
    page.keyboard.press("ArrowDown")
    card(page, "request\nr3")


def test_the_tree_of_a_step_and_its_neighbours(page: Any, trace: Trace) -> None:
    view = SpeculationTree(trace)
    show(page, view)
    first = view.drafts().iloc[0]
    drawn(page, int(first["step"]))
    words = page.locator(".wb-tree-words")
    expect(words).to_contain_text(f"drafted {first['tokens']} token")
    page.locator(".wb-tree").hover(position=place(30, 32))
    expect(page.locator(".wb-tooltip:visible")).to_contain_text("before the draft")
    page.locator(".wb-speculation-tree .wb-button").nth(1).click()
    following = view.drafts()["step"]
    drawn(page, int(following[following > first["step"]].iloc[0]))
    page.locator(".wb-acceptance").click(position=place(105, 22))
    drawn(page, 1)
    expect(words).to_have_text(re.compile("^Step 1 verified no draft"))


@pytest.mark.parametrize("kind", [BatchTimeline, TokenView, SpeculationTree])
def test_colours_follow_the_theme(page: Any, trace: Trace, kind: Any) -> None:
    pictures = []
    for dark in (False, True):
        view = kind(trace)
        show(page, view, dark=dark)
        canvas = page.locator(".wb-view canvas").first
        page.wait_for_function(PAINTED)
        expect(canvas).to_have_attribute("aria-label", re.compile(f"^step {view.step}"))
        pictures.append(page.locator(".wb-body").screenshot())
    assert pictures[0] != pictures[1]


def test_a_view_without_a_run_says_so(page: Any) -> None:
    show(page, BatchTimeline(Trace()))
    add(page, TokenView(Trace()))
    add(page, SpeculationTree(Trace()))
    expect(page.locator("body")).to_contain_text("No request yet.")
    expect(page.locator(".wb-problem:visible")).to_have_count(0)


def test_a_panel_that_is_hidden_keeps_its_picture_and_draws_when_it_is_seen(
    page: Any, trace: Trace
) -> None:
    show(page, BatchTimeline(trace))
    sizes = page.evaluate(
        """async () => {
          const frame = () => new Promise(requestAnimationFrame);
          const canvas = document.querySelector(".wb-timeline");
          const sizes = [canvas.width];
          document.body.style.display = "none"; // as JupyterLab does while it loads a theme
          window.model.set("step", 30);
          await frame(); await frame();
          sizes.push(canvas.width);
          document.body.style.display = "";
          return sizes;
        }"""
    )
    assert sizes[0] == sizes[1] > 100
    drawn(page, 30)
