"""Training of adapters on a tiny base: they learn, PEFT and the engine read them, cards tell it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_checkpoint

from workbench.cli.main import main
from workbench.data.task_writers import Example
from workbench.data.tasks import task_examples
from workbench.errors import ConfigError, InvalidValue
from workbench.lora import read_adapter
from workbench.models import load_model
from workbench.models.tokenizer import Tokenizer
from workbench.train.lora import LoRASettings, train_lora
from workbench.train.lora_card import adapter_card, measure_adapter
from workbench.train.lora_data import IGNORED, encode_examples

SETTINGS = LoRASettings(rank=4, alpha=8, batch=8, lr=1e-2, examples=64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a real tokenizer."""
    return write_checkpoint(tmp_path_factory.mktemp("base"), "llama")


def test_the_loss_falls_and_the_engine_reads_what_peft_wrote(base: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    run = train_lora(
        "arithmetic",
        tmp_path / "a",
        model=base,
        steps=60,
        settings=SETTINGS,
        callback=rows.append,
        device="cpu",
        progress=False,
    )
    assert run.steps == 60
    assert rows == run.log
    assert rows[-1]["step"] == 60
    model = load_model(base, device="cpu", dtype="float32")
    adapter = read_adapter(run.folder, model)
    assert adapter.rank == 4
    assert sum(t.numel() for t in adapter.tensors.values()) == run.num_parameters
    data = encode_examples(task_examples("arithmetic", 64), Tokenizer.from_folder(base))
    before = loss_of(base, None, data.ids, data.labels)
    assert loss_of(base, run.folder, data.ids, data.labels) < 0.8 * before


def loss_of(base: Path, adapter: Path | None, ids: torch.Tensor, labels: torch.Tensor) -> float:
    """Return transformers' loss of the base, or of PEFT's model over it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_what_is_learnt_is_the_answer_and_its_end(base: Path) -> None:
    tokenizer = Tokenizer.from_folder(base)
    examples = [Example("# 1 + 1\n", "2"), Example("# 30 + 40\n", "70")]
    data = encode_examples(examples, tokenizer)
    for row, example in enumerate(examples):
        prompt = tokenizer.encode(example.prompt)
        answer = tokenizer.encode(example.answer, special=False)
        first, text = len(prompt) - 1, [*prompt, *answer]
        ended = [*answer, tokenizer.eos_token_ids[0]]
        assert data.ids[row, : len(text)].tolist() == text
        assert data.labels[row, first : first + len(ended)].tolist() == ended
        assert (data.labels[row] != IGNORED).sum() == len(ended)


def test_a_batch_follows_from_its_step_and_every_example_comes_once_a_round(base: Path) -> None:
    data = encode_examples(task_examples("dates", 20), Tokenizer.from_folder(base))
    device = torch.device("cpu")
    ids, labels = data.batch(3, 8, 5, device)
    again = data.batch(3, 8, 5, device)
    assert torch.equal(ids, again[0])
    assert torch.equal(labels, again[1])
    texts = [tuple(r) for step in range(5) for r in data.batch(step, 4, 0, device)[1].tolist()]
    assert sorted(map(learnt, texts)) == sorted(map(learnt, data.labels.tolist()))


def learnt(labels: Sequence[int]) -> list[int]:
    """Return the labelled tokens of a row."""
    return [label for label in labels if label != IGNORED]


def test_the_program_trains_measures_and_writes_a_card(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dates"
    common = ["train", "lora", "--out", str(folder), "--model", str(base), "--device", "cpu"]
    options = ["--task", "dates", "--steps", "2", "--batch", "4", "--examples", "16", "--rank", "2"]
    assert main([*common, *options, "--no-held-out"]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["rank"] == 2
    assert metrics["steps"] == 2
    card = (folder / "README.md").read_text()
    assert "exact match" not in card
    assert " ".join(options) in card
    asked = task_examples("dates", 3, held_out=True)
    measured = measure_adapter(folder, "dates", model=base, device="cpu", examples=asked)
    assert measured["exact_match"] == {"base": 0.0, "adapter": 0.0}
    assert "| adapter | 0.0% |" in adapter_card(metrics | measured)
    assert (folder / "adapter_model.safetensors").stat().st_size == metrics["bytes"] < 2e6


def test_faults_are_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="poetry"):
        train_lora("poetry", tmp_path, model=base, steps=1)
    with pytest.raises(ConfigError, match="one of the two"):
        train_lora("sql", tmp_path, model=base)
    with pytest.raises(ConfigError, match="steps"):
        train_lora("sql", tmp_path, model=base, steps=0)
    with pytest.raises(ConfigError, match="rank"):
        LoRASettings(rank=0)
