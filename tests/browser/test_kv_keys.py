"""The KV cache view by keyboard alone, in a bare page: from block to block, announced, selected."""

from __future__ import annotations

import re
from typing import Any

import pytest
from browsing import drawn, expect
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


def said(page: Any, beginning: str) -> None:
    """Wait until a block has been announced."""
    expect(page.locator(SAID)).to_have_text(re.compile(f"^{re.escape(beginning)}"))


def points_at(page: Any, block: int) -> None:
    """Wait until the tooltip is about a block."""
    expect(page.locator(".wb-tooltip")).to_have_text(
        re.compile(rf"^block\s{block}\s"), use_inner_text=True
    )


def test_arrows_go_from_block_to_block_and_say_what_each_is(page: Any, view: KVCacheView) -> None:
    show(page, view)
    grid = page.locator(".wb-grid").first
    page.locator(".wb-slider").focus()
    page.keyboard.press("ArrowRight")
    drawn(page, 21)
    expect(page.locator(SAID)).to_have_attribute("aria-live", "polite")
    grid.focus()
    page.keyboard.press("ArrowDown")
    said(page, "block 0;")
    expect(page.locator(SAID)).to_contain_text("state")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    said(page, "block 2;")
    tooltip = page.locator(".wb-tooltip")
    tooltip.wait_for(state="visible")
    points_at(page, 2)
    page.keyboard.press("ArrowDown")
    expect(page.locator(SAID)).not_to_have_text(re.compile("^block 2;"))
    drawn(page, 21)  # no step was taken
    page.keyboard.press("PageDown")  # keys that are none of its scrub as ever
    page.wait_for_function("document.querySelector('.wb-view').dataset.step < 21")
    page.keyboard.press("Tab")
    tooltip.wait_for(state="hidden")
    expect(page.locator(SAID)).to_have_text("")


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
    grid.hover(position={"x": 5, "y": 5})
    points_at(page, 0)
    expect(page.locator(SAID)).to_have_text("")
