"""Held-out loss and bits per byte, counted on whole files.

Called by the trainer. Every token of every held-out file is predicted exactly once, each file by
itself from its `<bos>`, with at least half a context before it wherever the file has that much.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from workbench.data.holdout import STDLIB
from workbench.data.tokenizer_training import load_tokenizer
from workbench.train.model import window_logits


@dataclass(frozen=True, slots=True)
class HeldOutFile:
    """One file: the group it is reported under, its UTF-8 length, its ids from `<bos>` on."""

    group: str
    num_bytes: int
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of one file `[start, end)`; those from `first_counted` on are counted."""

    file: int
    start: int
    end: int
    first_counted: int


def load_held_out(folder: Path) -> list[HeldOutFile]:
    """The held-out files of a corpus, encoded with its tokenizer; an `<eos>` is not predicted."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    files = []
    for line in (folder / "heldout.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        group = "stdlib" if row["distribution"] == STDLIB else "packages"
        text = row["text"]
        files.append(HeldOutFile(group, len(text.encode()), tokenizer.encode(text).ids))
    return files


def file_windows(length: int, context: int, file: int = 0) -> list[Window]:
    """Windows over `length` ids that count each id but the first exactly once."""
    windows = [Window(file, 0, min(length, context), 1)]
    stride = context // 2
    while windows[-1].end < length:
        counted = windows[-1].end
        end = min(length, counted + stride)
        windows.append(Window(file, end - context, end, counted))
    return windows


@torch.no_grad()
def held_out_scores(
    model: LlamaForCausalLM, files: list[HeldOutFile], context: int, batch: int = 32
) -> dict[str, dict[str, float]]:
    """For `overall` and each group: loss (nats per token), bits per byte, tokens, bytes, files."""
    windows = [w for n, file in enumerate(files) for w in file_windows(len(file.ids), context, n)]
    windows.sort(key=lambda window: window.end - window.start)
    nats: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for first in range(0, len(windows), batch):
        chunk = windows[first : first + batch]
        for window, loss in zip(chunk, _losses(model, files, chunk), strict=True):
            group = files[window.file].group
            nats[group] += loss
            counts[group] += window.end - window.first_counted
    scores = {}
    for name in ("overall", *sorted(counts)):
        groups = sorted(counts) if name == "overall" else [name]
        chosen = [file for file in files if file.group in groups]
        num_bytes = sum(file.num_bytes for file in chosen)
        total, tokens = sum(nats[g] for g in groups), sum(counts[g] for g in groups)
        scores[name] = {
            "loss": total / tokens,
            "bits_per_byte": total / math.log(2) / num_bytes,
            "tokens": tokens,
            "bytes": num_bytes,
            "files": len(chosen),
        }
    return scores


def _losses(
    model: LlamaForCausalLM, files: list[HeldOutFile], windows: list[Window]
) -> list[float]:
    """Nats of the counted tokens of each window; padding stands behind, hidden by causality."""
    width = max(window.end - window.start for window in windows)
    ids = torch.zeros(len(windows), width, dtype=torch.long)
    counted = torch.zeros(len(windows), width, dtype=torch.bool)
    for row, window in enumerate(windows):
        piece = files[window.file].ids[window.start : window.end]
        ids[row, : len(piece)] = torch.tensor(piece)
        counted[row, window.first_counted - window.start : len(piece)] = True
    ids, counted = ids.to(model.device), counted.to(model.device)
    logits = window_logits(model, ids[:, :-1]).float()
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    ).view(len(windows), -1)
    row_sums = (losses.double() * counted[:, 1:]).sum(1)
    return [float(value) for value in row_sums.tolist()]
