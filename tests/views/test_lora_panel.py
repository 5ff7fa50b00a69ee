"""`LoRAPanel`: what it shows is the manager's, its counts are the requests', its buttons act."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench.async_engine import AsyncEngine
from workbench.bench.lora_adapters import RandomAdapters
from workbench.errors import ConfigError
from workbench.events import RequestAdded, RequestFinished, SequenceForked, StepDone
from workbench.views.adapter_traffic import SECONDS, AdapterTraffic
from workbench.views.lora_panel import LoRAPanel

PARAMS = wb.SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)


def press(panel: LoRAPanel, command: str, **content: Any) -> None:
    """Do what the browser does when a button is pressed."""
    panel._handle_custom_msg({"command": command, **content}, [])


def named(panel: LoRAPanel) -> dict[str, Any]:
    """Return the panel's rows by name."""
    return {row["name"]: row for row in panel.adapters}


@pytest.fixture
def engine(make_engine: Any) -> wb.Engine:
    """A tiny engine with two adapters, of which none is on the device yet."""
    engine: wb.Engine = make_engine(num_blocks=64)
    random = RandomAdapters(engine.model)
    for number, name in enumerate(("sql", "json")):
        engine.loras.load(name, random.make(4, number))
    return engine


def test_it_shows_tiers_rows_and_traffic(engine: wb.Engine) -> None:
    with LoRAPanel(engine) as panel:
        assert [row["tier"] for row in panel.adapters] == ["host", "host"]
        for lora in (None, "sql", "sql:0.5+json", None, None):
            engine.add([5, 6, 7], PARAMS, lora=lora)
        engine.step()
        panel.refresh()
        assert {name: row["running"] for name, row in named(panel).items()} == {"sql": 2, "json": 1}
        while engine.has_work:
            engine.step()
        panel.refresh()
        rows = named(panel)
        assert {name: row["tokens"] for name, row in rows.items()} == {"sql": 10, "json": 5}
        assert panel.device["base"]["tokens"] == 15
        assert panel.device["base"]["requests"] == 3
        assert rows["sql"]["requests"] == 2
        for info in engine.loras.list():
            row = rows[info.name]
            assert (row["tier"], row["rows"]) == ("device", list(info.rows))
            assert (row["hits"], row["misses"]) == (info.hits, info.misses)
            assert row["running"] == 0
            assert "to device" in row["ms"]
        assert panel.device["num_rows"] - panel.device["num_free"] == 8
        assert "2 on device" in panel.summary()
        assert list(panel.table().index) == ["json", "sql"]
        assert panel.to_png().startswith(b"\x89PNG")


def test_buttons_act_while_requests_run(engine: wb.Engine, tmp_path: Path) -> None:
    RandomAdapters(engine.model).make(2, 5).to_peft(tmp_path / "more")
    with LoRAPanel(engine) as panel:
        engine.add([5, 6, 7], PARAMS, lora="sql")
        engine.step()
        press(panel, "load", name="more", path=str(tmp_path / "more"))
        assert panel.notice == ""
        assert named(panel)["more"]["rank"] == 2
        press(panel, "pin", name="more")
        assert named(panel)["more"]["pinned"]
        press(panel, "evict", name="more")
        assert "is pinned" in panel.notice
        press(panel, "unpin", name="more")
        press(panel, "evict", name="more")
        assert (panel.notice, named(panel)["more"]["tier"]) == ("", "host")
        press(panel, "evict", name="sql")
        assert "in use" in panel.notice
        press(panel, "unload", name="sql", wait=False)
        assert "in use by 1 request(s)" in panel.notice
        assert not named(panel)["sql"]["leaving"]
        press(panel, "unload", name="sql", wait=True)
        assert panel.notice == ""
        assert named(panel)["sql"]["leaving"]
        while engine.has_work:
            engine.step()
        engine.add([5, 6, 7], PARAMS)
        engine.step()
        panel.refresh()
        assert set(named(panel)) == {"json", "more"}


@pytest.mark.parametrize(
    ("command", "content", "said"),
    [
        ("pin", {"name": "nobody"}, "is not loaded"),
        ("load", {"name": "sql", "path": "x"}, "is loaded already"),
        ("load", {"name": "new", "path": "no/such/folder"}, "is no folder"),
        ("load", {"name": "../new", "path": "x"}, "is no name"),
        ("load", {"name": "new"}, "lacks a part"),
        ("explode", {"name": "sql"}, "is no command"),
    ],
)
def test_what_a_command_could_not_do_is_said(
    engine: wb.Engine, command: str, content: dict[str, Any], said: str
) -> None:
    with LoRAPanel(engine) as panel:
        press(panel, command, **content)
        assert said in panel.notice
        press(panel, "pin", name="json")
        assert panel.notice == ""


def test_a_manager_will_do_and_a_closed_panel_hears_nothing(engine: wb.Engine) -> None:
    panel = LoRAPanel(engine.loras)
    engine.generate([[5, 6, 7]], PARAMS, lora="json")
    panel.refresh()
    assert named(panel)["json"]["tokens"] == 5
    panel.close()
    engine.generate([[5, 6, 7]], PARAMS, lora="json")
    assert panel._traffic.tokens["json"] == 5
    with pytest.raises(ConfigError, match="no adapters to show"):
        LoRAPanel("sql")  # type: ignore[arg-type]


def test_an_engine_on_a_thread_is_asked_between_its_steps(engine: wb.Engine) -> None:
    with AsyncEngine(engine) as aengine, LoRAPanel(aengine) as panel:
        press(panel, "pin", name="json")
        press(panel, "pin", name="nobody")
        aengine.call(lambda engine: None).result()  # what was asked before has been answered
        panel.refresh()
        aengine.call(lambda engine: None).result()
        assert named(panel)["json"]["pinned"]
        assert "nobody" in panel.notice


def test_a_panel_may_ask_while_an_engine_tells() -> None:
    traffic = AdapterTraffic()

    def tell() -> None:
        for step in range(5000):
            traffic.take(RequestAdded(step, "a", step, 1, 1, (5,)), 0.01 * step)
            traffic.take(RequestFinished(step, "a", step, "length", 1), 0.01 * step)
            traffic.take(StepDone(step, ((step, 7),), {}, 0), 0.01 * step)

    with ThreadPoolExecutor(1) as pool:
        told, now = pool.submit(tell), 0.0
        while not told.done():
            now += 0.01
            traffic.rates(now)
            traffic.running()
    told.result()
    assert traffic.tokens[""] == 5000


def test_rates_are_of_the_last_seconds_and_forks_count_as_their_parents() -> None:
    traffic = AdapterTraffic()
    traffic.take(RequestAdded(0, "a", 1, 2, 9, (5, 6), lora="sql:0.5+json"), 0.0)
    traffic.take(SequenceForked(0, "a", 2, 1, 2, 2, (), 1), 0.0)
    traffic.take(StepDone(1, ((1, 7), (2, 7)), {}, 0), 1.0)
    assert traffic.rates(1.0) == {"sql": 2 / SECONDS, "json": 2 / SECONDS}
    assert traffic.running() == Counter(sql=2, json=2)
    assert traffic.requests == Counter(sql=1, json=1)
    traffic.take(RequestFinished(2, "a", 1, "length", 2), 2.0)
    traffic.take(StepDone(2, ((1, 8),), {}, 0), 2.0)
    assert traffic.tokens == Counter(sql=3, json=3), "the last token comes after the end"
    assert traffic.running() == Counter(sql=1, json=1)
    assert traffic.rates(2.0 + SECONDS / 2) == {"sql": 1 / SECONDS, "json": 1 / SECONDS}
    assert traffic.rates(9.0) == {}
