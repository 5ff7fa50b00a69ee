"""The adapters' panel in JupyterLab: its buttons act on the manager in the kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browsing import expect

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),  # one server, one worker
]

CELL = """
import workbench as wb
from workbench.bench.lora_adapters import RandomAdapters
engine = wb.build(wb.EngineConfig("tinypy", num_blocks=64, lora_rows=8))
made = RandomAdapters(engine.model)
for number, name in enumerate(("sql", "json", "dates")):
    engine.loras.load(name, made.make(4, number))
params = wb.SamplingParams(max_tokens=8, ignore_eos=True)
panel = wb.views.LoRAPanel(engine)
engine.generate(["def f():"] * 3, params, lora=["sql", "json", None])
panel.refresh()
panel
"""


def test_adapters_are_pinned_evicted_unloaded_and_loaded(
    tmp_path: Path, run_notebook: Callable[[Path], list[Any]], page: Any
) -> None:
    path = tmp_path / "adapters.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    cells = [nbformat.v4.new_code_cell(CELL.strip())]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    ran = run_notebook(path)
    assert not [o for cell in ran for o in cell["outputs"] if o["output_type"] == "error"]
    panel = page.locator(".wb-lora-panel")
    panel.wait_for()

    def row(name: str) -> Any:
        return panel.locator("tr", has_text=name)

    def becomes(name: str, text: str) -> None:
        row(name).locator("td", has_text=text).first.wait_for()

    becomes("sql", "device")
    becomes("dates", "host")
    expect(panel.locator(".wb-owners > div")).to_have_count(2)
    row("sql").get_by_label("pin sql").click()
    becomes("sql", "device, pinned")
    expect(row("sql").get_by_label("evict sql")).to_be_disabled()
    row("json").get_by_label("evict json").click()
    becomes("json", "host")
    row("dates").get_by_label("pin dates").click()
    becomes("dates", "device, pinned")
    row("json").get_by_label("pin json").click()  # two are pinned already, and fill the device
    panel.locator(".wb-notice", has_text="no room").wait_for()
    panel.get_by_label("unload waits for requests").uncheck()
    row("json").get_by_label("unload json").click()
    row("json").wait_for(state="detached")
    panel.get_by_label("name", exact=True).fill("new")
    panel.get_by_label("path", exact=True).fill("no/such/folder")
    panel.locator("button", has_text="load").first.click()
    panel.locator(".wb-notice", has_text="is no folder").wait_for()
    expect(panel.locator(".wb-problem")).to_have_text("")
