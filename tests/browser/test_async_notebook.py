"""The notebook of many streams, in a real JupyterLab: the cards fill and show how each ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("browser"),  # one server, one worker
]


@pytest.mark.runs_notebook("09_async_and_streaming")
def test_streams_fill_their_cards(
    repository: Path, run_notebook: Callable[[Path], list[Any]], page: Any
) -> None:
    cells = run_notebook(repository / "notebooks" / "09_async_and_streaming.ipynb")
    errors = [o for c in cells for o in c.get("outputs", []) if o["output_type"] == "error"]
    assert errors == []
    cards = page.locator(".jp-OutputArea .widget-html pre")
    texts = cards.all_text_contents()
    assert len(texts) == 8
    assert all(len(text.split()) > 5 for text in texts[3:]), "a card is empty"
    buttons = page.locator(".jp-OutputArea button:disabled").all_text_contents()
    assert buttons.count("cancelled") == 2
    assert buttons.count("length") == 6
    cards.first.scroll_into_view_if_needed()
    seen = "() => [...document.querySelectorAll('.widget-html pre')].some(card => card.innerText)"
    page.wait_for_function(seen, timeout=20_000)
    page.screenshot(path=str(repository / ".artifacts" / "browser" / "09_cards.png"))
