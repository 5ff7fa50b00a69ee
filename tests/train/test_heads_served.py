"""Acceptance in the engine, and what is written of it."""

from __future__ import annotations

import json

import pytest
from tiny import TEXTS, write_checkpoint

from workbench.cli.main import main
from workbench.models import load_model
from workbench.speculation import DraftModel
from workbench.train.heads_data import TextWindows, token_stream
from workbench.train.heads_export import export_head
from workbench.train.heads_served import served_acceptance
from workbench.train.heads_tasks import new_task


def test_a_model_drafts_itself_perfectly(tmp_path) -> None:
    folder = write_checkpoint(tmp_path, "llama")
    model = load_model(folder, device="cpu", dtype="float32")
    prompts = TextWindows(token_stream(TEXTS, model), 5, 0).batch(0, 3).tolist()
    plain = served_acceptance(model, None, prompts, max_tokens=20)
    found = served_acceptance(model, DraftModel(model, 3), prompts, max_tokens=20)
    assert found["token_ids"] == plain["token_ids"]
    assert plain["length"] == 1.0
    # all but what the end cuts short
    assert 3.5 <= found["length"] <= 4.0
    assert found["accepted"][0] == pytest.approx(1.0, abs=0.1)


def test_the_program_measures_and_renews_the_card(tmp_path, capsys) -> None:
    folder = write_checkpoint(tmp_path / "target", "llama")
    model = load_model(folder, device="cpu", dtype="float32")
    head = tmp_path / "head"
    row = {"loss": 1.0, "tokens": 8, "seconds": 1.0}
    metrics = {"kind": "medusa", "num_parameters": 1, "steps": 1, "text": "x", "device": "y"}
    metrics |= {"command": "z", "acceptance": {}, "log": [row]}
    export_head(new_task("medusa", model, num_heads=2).module, head, "t", metrics)
    assert "acceptance length" not in (head / "README.md").read_text()
    words = ["train", "measure", str(head), "--model", str(folder), "--every", "64", "--write"]
    words += ["--max-tokens", "8", "--dtype", "float32", "--temperatures", "0", "0.8"]
    assert main(words) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[0] == "{"]
    assert [r["temperature"] for r in rows] == [0.0, 0.8]
    assert all(r["same_as_plain"] == r["num_prompts"] == 2 for r in rows)
    written = json.loads((head / "metrics.json").read_text())["acceptance"]
    assert [r["length"] for r in rows] == [r["length"] for r in written.values()]
    card = (head / "README.md").read_text()
    assert all(f"| {name} | {r['length']:.2f} |" in card for name, r in written.items())
