"""Rows that a model writes itself: what the engine says, and at a temperature what it draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import TEXTS, write_checkpoint

from workbench.cli.main import main
from workbench.errors import ConfigError
from workbench.models import DecoderLM, load_model
from workbench.train.heads_capture import capture, training_backend
from workbench.train.heads_data import TextWindows, continuations, token_stream
from workbench.train.heads_writing import own_rows, write_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DecoderLM:
    """A tiny target with a real tokenizer and random weights."""
    folder = write_checkpoint(tmp_path_factory.mktemp("target"), "llama")
    return load_model(folder, device="cpu", dtype="float32")


def test_greedy_rows_are_what_the_engine_says(model) -> None:
    prompts = TextWindows(token_stream(TEXTS, model), 6, 0).batch(0, 5)
    rows = write_rows(model, prompts, 24)
    assert torch.equal(rows[:, :6], prompts)
    for row, said in zip(rows.tolist(), continuations(model, prompts.tolist(), 18), strict=True):
        assert row[6 : 6 + len(said)] == said  # the engine ends at an end token


def test_each_row_is_drawn_at_its_own_temperature(model) -> None:
    """One token behind the same prompt, many times: its law, by chi-square; row 0 is greedy."""
    count, heat = 4000, 0.7
    prompt = TextWindows(token_stream(TEXTS, model), 6, 0).batch(0, 1)
    temperatures = torch.full((count,), heat)
    temperatures[0] = 0.0
    rows = write_rows(model, prompt.expand(count, -1), 7, temperatures, seed=3)[:, 6]
    [[greedy]] = continuations(model, prompt.tolist(), 1)
    assert rows[0] == greedy
    again = write_rows(model, prompt.expand(count, -1), 7, temperatures, seed=3)[:, 6]
    assert torch.equal(rows, again)
    seen = capture(model, prompt, (), training_backend(model))
    law = (seen.logits()[0, -1] / heat).softmax(-1).double()
    found = torch.bincount(rows[1:], minlength=len(law)).double()
    expected = law * (count - 1)
    often = expected >= 5
    chi = ((found - expected) ** 2 / expected)[often].sum()
    freedom = int(often.sum())
    assert freedom > 20
    assert abs(float(chi) - freedom) < 5 * (2 * freedom) ** 0.5


def test_half_of_the_rows_begin_where_documents_do(model) -> None:
    stream = torch.arange(5, 205, dtype=torch.int32)
    starts = torch.tensor([0, 40])
    more = {"starts": starts, "prompt_tokens": (4, 8), "batch": 6, "temperatures": (0.0,)}
    first, second = own_rows(model, stream, 10, 12, **more)
    assert [len(first), len(second)] == [6, 4]
    assert {*first[:3, 0].tolist()} <= {5, 45}
    assert {*second[:2, 0].tolist()} <= {5, 45}
    assert (first[:, :4].diff(dim=1) == 1).all()
    assert (second[:, :8].diff(dim=1) == 1).all()


def test_rows_without_room_are_refused(model) -> None:
    with pytest.raises(ConfigError, match="has no room"):
        write_rows(model, torch.zeros(2, 8, dtype=torch.int64), 8)
    with pytest.raises(ConfigError, match="has no room"):
        write_rows(model, torch.zeros(2, 8, dtype=torch.int64), model.config.context + 1)


def test_batches_hold_their_share_of_rows() -> None:
    rows = torch.full((9, 8), 1000)
    windows = TextWindows(torch.arange(100), 7, seed=1, rows=rows, share=0.25)
    batch = windows.batch(4, 8)
    assert batch.shape == (8, 7)
    assert (batch == 1000).all(1).tolist() == [False] * 6 + [True] * 2
    assert torch.equal(batch, windows.batch(4, 8))
    with pytest.raises(ConfigError, match="own_rows"):
        TextWindows(torch.arange(100), 9, seed=1, rows=rows)


def test_the_program_writes_a_file(tmp_path, capsys) -> None:
    folder = write_checkpoint(tmp_path / "target", "llama")
    path = tmp_path / "own.npy"
    words = ["train", "own-text", "--model", str(folder), "--out", str(path), "--rows", "6"]
    words += ["--length", "40", "--batch", "4", "--megabytes", "0.02", "--dtype", "float32"]
    assert main(words) == 0
    assert "240 tokens" in capsys.readouterr().out
    rows = np.load(path)
    assert rows.shape == (6, 40)
