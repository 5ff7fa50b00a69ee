"""The KV cache view by keyboard alone, in a bare page: from block to block, announced, selected."""

from __future__ import annotations

from typing import Any

import pytest
from view_page import show

from workbench.bench.view_trace import make_trace
from workbench.views import KVCacheView

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

SAID = ".wb-cell"


@pytest.fixture
def view() -> KVCacheView:
    shown = KVCacheView(make_trace(64, 30, 4))
    shown.step = 20
    return shown


def said(page: Any, beginning: str) -> str:
    """Wait until a block has been announced, and return the words."""
    page.wait_for_function(
        "([where, text]) => document.querySelector(where).textContent.startsWith(text)",
        arg=[SAID, beginning],
        timeout=20_000,
    )
    return str(page.locator(SAID).text_content())


def test_arrows_go_from_block_to_block_and_say_what_each_is(page: Any, view: KVCacheView) -> None:
    show(page, view)
    grid = page.locator(".wb-grid").first
    page.locator(".wb-slider").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.wb-view').dataset.step == 21")
    assert page.locator(SAID).get_attribute("aria-live") == "polite"
    grid.focus()
    page.keyboard.press("ArrowDown")
    words = said(page, "block 0;")
    assert "state" in words
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    words = said(page, "block 2;")
    tooltip = page.locator(".wb-tooltip")
    assert tooltip.is_visible()
    assert tooltip.inner_text().replace("\n", " ").startswith("block 2 ")
    page.keyboard.press("ArrowDown")
    page.wait_for_function(
        "where => !document.querySelector(where).textContent.startsWith('block 2;')", arg=SAID
    )
    assert page.locator(".wb-view").get_attribute("data-step") == "21", "no step was taken"
    page.keyboard.press("PageDown")  # keys that are none of its scrub as ever
    page.wait_for_function("document.querySelector('.wb-view').dataset.step < 21")
    page.keyboard.press("Tab")
    tooltip.wait_for(state="hidden")
    assert page.locator(SAID).text_content() == ""


def test_enter_selects_the_sequence_and_escape_lets_it_go(page: Any, view: KVCacheView) -> None:
    show(page, view)
    cells = view._kv.cells(20)
    place = next(i for i, cell in enumerate(cells[:64]) if cell >> 27 & 7 == 1)
    page.locator(".wb-grid").first.focus()
    for _ in range(place + 1):
        page.keyboard.press("ArrowRight")
    said(page, f"block {place};")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.wb-head').textContent.includes(' holds ')")
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('.wb-head').textContent.includes(' holds ')")


def test_a_mouse_takes_over(page: Any, view: KVCacheView) -> None:
    show(page, view)
    grid = page.locator(".wb-grid").first
    grid.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    said(page, "block 1;")
    box = grid.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.wait_for_function(
        "document.querySelector('.wb-tooltip').innerText.replace('\\n', ' ').startsWith('block 0')"
    )
    assert page.locator(SAID).text_content() == ""
