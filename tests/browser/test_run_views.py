"""Timeline, tokens and drafts in a bare page: click, hover, keys, zoom, shared step and request."""

from __future__ import annotations

from typing import Any

import pytest
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


@pytest.fixture
def trace() -> Trace:
    run = RecordedRun(12, seed=5, drafts="tree", logprobs=4, wanted=(30, 50), max_running=6)
    return run.run(60)


def drawn(page: Any, step: int, panel: int = 0) -> None:
    page.wait_for_function(
        "([n, step]) => document.querySelectorAll('.wb-view')[n].dataset.step == step",
        arg=[panel, step],
        timeout=20_000,
    )


def at(page: Any, selector: str, x: float, y: float) -> tuple[float, float]:
    """Return page coordinates of a place in an element."""
    box = page.locator(selector).bounding_box()
    return box["x"] + x, box["y"] + y


def column_x(page: Any, column: int, count: int) -> float:
    """Return where a step's column is on the timeline's canvas: between names and edge."""
    width = page.locator(".wb-timeline").bounding_box()["width"]
    return 104 + (column + 0.5) * (width - 104 - 20) / count


def batch(page: Any) -> str:
    return str(page.locator(".wb-detail").inner_text())


def test_a_click_goes_to_a_step_and_lists_its_batch(page: Any, trace: Trace) -> None:
    view = BatchTimeline(trace)
    show(page, view)
    page.mouse.click(*at(page, ".wb-timeline", column_x(page, 19, 60), 40))
    drawn(page, 20)
    expected = view.rows(20)
    assert batch(page).startswith(f"Step 20: {expected['num'].sum()} of at most 256 tokens")
    rows = page.locator(".wb-batch tr")
    assert rows.count() == 1 + len(expected)
    assert rows.nth(1).locator("td").nth(1).inner_text() == expected["request"][0]
    page.locator(".wb-timeline").focus()
    page.keyboard.press("ArrowRight")
    drawn(page, 21)
    assert batch(page).startswith("Step 21")
    page.keyboard.press("Enter")
    page.locator(".wb-detail").wait_for(state="hidden")
    page.keyboard.press("Enter")
    page.locator(".wb-detail").wait_for(state="visible")


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
    assert SCRIPT in page.locator(".wb-text").text_content()
    assert SCRIPT.replace(" ", "·") in page.locator(".wb-detail").text_content()
    assert page.evaluate("window.harmed === undefined")
    assert page.locator(".wb-view script").count() == 0


def test_hovering_says_what_a_request_did(page: Any, trace: Trace) -> None:
    view = BatchTimeline(trace)
    show(page, view)
    page.mouse.move(*at(page, ".wb-timeline", column_x(page, 9, 60), 60))
    tooltip = page.locator(".wb-tooltip")
    tooltip.wait_for(state="visible")
    words = tooltip.inner_text()
    assert f"step\n10\nbatch\n{view.rows(10)['num'].sum()} of 256 tokens" in words
    page.mouse.move(*at(page, ".wb-timeline", column_x(page, 9, 60), 150))  # the first lane
    page.wait_for_function("document.querySelector('.wb-tooltip').innerText.includes('request')")
    assert "r0 (sequence 0)" in tooltip.inner_text()
    page.mouse.move(*at(page, ".wb-timeline", 20, 5))
    tooltip.wait_for(state="hidden")


def test_zoom_pan_and_the_step_stays_in_view(page: Any, trace: Trace) -> None:
    show(page, BatchTimeline(trace))
    page.locator(".wb-timeline").focus()
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("+")
    drawn(page, 1)
    # 60 steps by three halvings: 7.5 steps across, so the first one is wide
    x = 104 + 0.5 * (page.locator(".wb-timeline").bounding_box()["width"] - 124) / 7.5
    page.mouse.move(*at(page, ".wb-timeline", x, 60))
    page.wait_for_function(
        "document.querySelector('.wb-tooltip').innerText.startsWith('step\\n1\\n')"
    )
    page.keyboard.press("End")
    drawn(page, 60)
    box = page.locator(".wb-timeline").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 25, box["y"] + 60)
    page.wait_for_function(
        "document.querySelector('.wb-tooltip').innerText.startsWith('step\\n60\\n')"
    )
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] + 200, box["y"] + 60, steps=5)
    page.mouse.up()
    drawn(page, 60)  # a drag is no click
    page.mouse.move(box["x"] + box["width"] - 25, box["y"] + 62)
    page.wait_for_function(
        "/^step\\n5[0-9]\\n/.test(document.querySelector('.wb-tooltip').innerText)"
    )


def test_a_token_tells_how_it_came_and_goes_to_its_step(page: Any, trace: Trace) -> None:
    view = TokenView(trace)
    show(page, view)
    add(page, BatchTimeline(trace))
    table = view.tokens("r0")
    position = int(table.index[table["maker"] == "drafted"][0])
    token = page.locator(f".wb-t[data-position='{position}']")
    token.hover()
    card = page.locator(".wb-card")
    page.wait_for_function(
        "document.querySelector('.wb-card').innerText.includes('drafted by medusa')"
    )
    assert f"step\n{table['step'][position]}" in card.inner_text()
    assert page.locator(".wb-other").count() == 4
    percent = f"{100 * table['probability'][position]:.1f} %"
    assert page.locator(".wb-chosen .wb-percent").inner_text() == percent
    token.click()
    drawn(page, int(table["step"][position]), panel=1)
    later = page.locator(".wb-t.wb-later").count()
    assert later == (table["step"] > table["step"][position]).sum()
    page.keyboard.press("End")
    page.wait_for_function("document.querySelectorAll('.wb-t.wb-later').length === 0")


def test_the_request_is_shared_by_all_panels(page: Any, trace: Trace) -> None:
    show(page, BatchTimeline(trace))
    add(page, TokenView(trace))
    page.locator(".wb-select").select_option("2")
    page.wait_for_function("document.querySelector('.wb-card').innerText.includes('request\\nr2')")
    page.locator(".wb-timeline").focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("document.querySelector('.wb-card').innerText.includes('request\\nr3')")


def test_the_tree_of_a_step_and_its_neighbours(page: Any, trace: Trace) -> None:
    view = SpeculationTree(trace)
    show(page, view)
    first = view.drafts().iloc[0]
    drawn(page, int(first["step"]))
    words = page.locator(".wb-tree-words")
    assert f"drafted {first['tokens']} token" in words.inner_text()
    page.mouse.move(*at(page, ".wb-tree", 30, 32))
    page.wait_for_function(
        "document.querySelector('.wb-tooltip').innerText.includes('before the draft')"
    )
    page.locator(".wb-speculation-tree .wb-button").nth(1).click()
    following = view.drafts()["step"]
    drawn(page, int(following[following > first["step"]].iloc[0]))
    page.locator(".wb-acceptance").click(position={"x": 105, "y": 22})
    drawn(page, 1)
    assert words.inner_text().startswith("Step 1 verified no draft")


@pytest.mark.parametrize("kind", [BatchTimeline, TokenView, SpeculationTree])
def test_colours_follow_the_theme(page: Any, trace: Trace, kind: Any) -> None:
    pictures = []
    for dark in (False, True):
        view = kind(trace)
        show(page, view, dark=dark)
        canvas = page.locator(".wb-view canvas").first
        painted = canvas.evaluate(
            """c => new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height)
                .data.buffer).some((pixel) => pixel !== 0)"""
        )
        assert painted
        assert canvas.get_attribute("aria-label").startswith(f"step {view.step}")
        pictures.append(page.locator(".wb-body").screenshot())
    assert pictures[0] != pictures[1]


def test_a_view_without_a_run_says_so(page: Any) -> None:
    show(page, BatchTimeline(Trace()))
    add(page, TokenView(Trace()))
    add(page, SpeculationTree(Trace()))
    assert "No request yet." in page.evaluate("document.body.innerText")
    assert page.locator(".wb-problem:visible").count() == 0


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
