"""The adapters that ship: their cards meet what is promised, and the engine finds it to be so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import workbench as wb
from workbench.build import build
from workbench.data.tasks import exact_matches, load_held_out
from workbench.places import repository_root
from workbench.train.lora_card import adapter_card, answers

HOME = repository_root() / "adapters" / "tinypy" / "lora"
FOLDERS = sorted(path.parent for path in HOME.glob("*/adapter_config.json"))
each = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@pytest.fixture(scope="module")
def engine() -> Iterator[wb.Engine]:
    """An engine with the embedded model."""
    with build(wb.EngineConfig("tinypy", device="cpu", num_blocks=256)) as engine:
        yield engine


def test_there_are_at_least_four() -> None:
    assert len(FOLDERS) >= 4


@each
def test_a_card_keeps_the_promise(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["task"] == folder.name
    assert metrics["num_examples"] == 200
    assert metrics["exact_match"]["base"] <= 0.1
    assert metrics["exact_match"]["adapter"] >= 0.8
    assert (folder / "adapter_model.safetensors").stat().st_size == metrics["bytes"] <= 2e6
    assert f"--out adapters/tinypy/lora/{folder.name}" in metrics["command"]
    assert (folder / "README.md").read_text(encoding="utf-8") == adapter_card(metrics)


@each
def test_it_knows_its_task_and_the_base_does_not(folder: Path, engine: wb.Engine) -> None:
    asked = load_held_out(folder.name)[-10:]
    engine.loras.load(folder.name, folder)
    base, own = answers(engine, folder.name, asked, [None, folder.name])
    assert sum(exact_matches(base, asked)) <= 2
    assert sum(exact_matches(own, asked)) >= 6
