"""The corpus builder end to end on a few files of the standard library."""

import json

import numpy as np

from workbench.data.corpus import main
from workbench.data.holdout import is_held_out
from workbench.data.token_arrays import read_tokens


def test_a_small_corpus(tmp_path):
    arguments = ["--out", str(tmp_path), "--stdlib-only", "--limit-files", "45"]
    assert main([*arguments, "--workers", "1", "--vocab-size", "600", "--sample-mb", "0.5"]) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    totals = manifest["totals"]
    tokens = read_tokens(tmp_path / "train.bin")
    assert len(tokens) == totals["train_array_tokens"] >= totals["train_tokens"] > 10_000
    documents = sum(kind["documents"] for kind in manifest["kinds"].values())
    assert np.count_nonzero(tokens == 1) == np.count_nonzero(tokens == 2) == documents
    rows = [json.loads(line) for line in (tmp_path / "heldout.jsonl").read_text().splitlines()]
    assert len(rows) == totals["held_out_files"] > 0
    assert all(is_held_out(row["distribution"], row["module"]) for row in rows)
    used = totals["train_files"] + totals["held_out_files"] + sum(manifest["dropped"].values())
    assert used + sum(manifest["rejected_files"].values()) >= totals["files_read"] == 45
    assert [row["licence"] for row in manifest["distributions"]] == ["PSF-2.0"]
