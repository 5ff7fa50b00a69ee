"""The notebook of many streams, in a real JupyterLab: the cards fill and show how each ended."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import expect

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),  # one server, one worker
]


def outputs(cell: Any) -> list[Any]:
    return list(cell.get("outputs", []))


@pytest.mark.runs_notebook("09_async_and_streaming")
def test_streams_fill_their_cards(
    repository: Path, run_notebook: Callable[[Path], list[Any]], page: Any
) -> None:
    cells = run_notebook(repository / "notebooks" / "09_async_and_streaming.ipynb")
    errors = [o for c in cells for o in outputs(c) if o["output_type"] == "error"]
    assert errors == []
    cards = page.locator(".jp-OutputArea .widget-html pre")
    expect(cards).to_have_count(8)
    several_words = re.compile(r"(\S+\s+){5}\S")
    for place in range(3, 8):
        expect(cards.nth(place)).to_have_text(several_words)
    # Two are cancelled by the notebook, unless the machine was so slow that they had ended.
    texts = ["".join(o.get("data", {}).get("text/plain", "")) for c in cells for o in outputs(c)]
    [table] = [text for text in texts if "def quicksort(xs):" in text]
    ends = re.findall(r"(?m)(\w+)$", table)[1:]
    assert len(ends) == 8
    assert set(ends) <= {"cancelled", "length"}
    ended = page.locator(".jp-OutputArea button:disabled")
    for end in ("cancelled", "length"):
        shown = ended.filter(has_text=re.compile(f"^{end}$"))
        expect(shown).to_have_count(ends.count(end))
    cards.first.scroll_into_view_if_needed()
    seen = "() => [...document.querySelectorAll('.widget-html pre')].some(card => card.innerText)"
    page.wait_for_function(seen)
    page.screenshot(path=str(repository / ".artifacts" / "browser" / "09_cards.png"))
