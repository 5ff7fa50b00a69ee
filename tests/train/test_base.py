"""The trainer end to end on a tiny model: it learns, resumes exactly and exports."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.train import base, loop
from workbench.train.card import model_card
from workbench.train.evaluate import held_out_scores, load_held_out

TINY = ["--eager", "--device", "cpu", "--layers", "2", "--hidden", "32", "--heads", "2"]
TINY += ["--kv-heads", "1", "--intermediate", "64", "--context", "64", "--batch-windows", "8"]
TINY += ["--micro-windows", "3", "--lr", "0.02"]


def run(corpus, out, *more):
    return base.main(["--data", str(corpus), "--out", str(out), *TINY, *more])


def weights(out):
    return torch.load(out / "state.pt", weights_only=True)["weights"]["masters"]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_resumed_run_equals_an_uninterrupted_one(corpus, tmp_path, optimizer, monkeypatch):
    more = ["--tokens", str(8 * 64 * 10), "--optimizer", optimizer]
    calls, make_limits, step = [], base.call_limits, loop._step

    def recorded(*arguments):
        calls.append(make_limits(*arguments))
        return calls[-1]

    def stopping(run, rate):
        if len(calls) == 2 and run.step == 4:  # the second call ends with its fifth step
            calls[-1].stop_at = 0.0
        return step(run, rate)

    monkeypatch.setattr(base, "call_limits", recorded)
    monkeypatch.setattr(loop, "_step", stopping)
    assert run(corpus, tmp_path / "whole", *more) == 0
    assert run(corpus, tmp_path / "parts", *more) == 0
    assert torch.load(tmp_path / "parts" / "state.pt", weights_only=True)["step"] == 5
    assert run(corpus, tmp_path / "parts", *more) == 0
    for one, other in zip(weights(tmp_path / "whole"), weights(tmp_path / "parts"), strict=True):
        assert torch.equal(one, other)


@pytest.fixture(scope="module")
def exported(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    more = ["--tokens", str(8 * 64 * 40), "--export", str(folder / "model")]
    assert run(corpus, folder / "run", *more) == 0
    return folder / "model"


def test_it_learns(exported):
    log = json.loads((exported / "metrics.json").read_text())["log"]
    assert log[-1]["loss"] < 0.7 * math.log(320)
    assert log[-1]["fraction"] == 1.0


def test_the_export_scores_the_same_when_transformers_loads_it(corpus, exported):
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert model.dtype == torch.bfloat16
    metrics = json.loads((exported / "metrics.json").read_text())
    scores = held_out_scores(model, load_held_out(corpus), context=64)
    for group in ("overall", "stdlib", "packages"):
        assert scores[group]["loss"] == pytest.approx(metrics["held_out"][group]["loss"], rel=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer("def f").input_ids[0] == model.config.bos_token_id == 1
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2


def test_the_card_is_made_from_the_figures(exported):
    metrics = json.loads((exported / "metrics.json").read_text())
    card = (exported / "README.md").read_text()
    assert card == model_card(metrics)
    assert f"{metrics['held_out']['overall']['bits_per_byte']:.4f}" in card
    assert "| thing 1.0 | MIT |" in card
    assert "other (MPL-2.0)" in card
    assert card.count("```python") == len(metrics["completions"]) == 5
