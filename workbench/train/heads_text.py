"""`workbench train own-text`: have a model write the rows that heads learn from.

Behind pieces of a corpus, half of them beginnings of documents; as an array [rows, length] of token
ids in a `.npy` file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from workbench.models import load_model
from workbench.train.heads_program import text_stream
from workbench.train.heads_writing import own_rows


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    model = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
    stream = text_stream(model, arguments.data, arguments.megabytes)
    first = model.config.bos_token_id
    starts = None if first is None else (stream == first).nonzero()[:, 0]
    began, batches, num_tokens = time.perf_counter(), [], 0
    for rows in own_rows(
        model,
        stream,
        arguments.rows,
        arguments.length,
        starts=starts,
        temperatures=tuple(arguments.temperatures),
        batch=arguments.batch,
        seed=arguments.seed,
    ):
        batches.append(rows.numpy().astype(np.uint32))
        num_tokens += rows.numel()
        seconds = time.perf_counter() - began
        print(f"{num_tokens:,} tokens, {num_tokens / seconds:,.0f} a second", flush=True)
        if arguments.seconds and seconds > arguments.seconds:
            break
    Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
    with open(arguments.out, "wb") as file:
        np.save(file, np.concatenate(batches))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("workbench train own-text", description=__doc__)
    add = parser.add_argument
    add("--model", default="tinypy", help="who writes: a name, folder or hub id")
    add("--out", required=True, help="the .npy file")
    add("--data", help="a corpus of the model's tokenizer; else Python of this machine")
    add("--megabytes", type=float, default=20.0, help="of this machine's Python")
    add("--rows", type=int, default=4096)
    add("--length", type=int, default=256, help="of a row, its beginning included")
    add("--temperatures", type=float, nargs="+", default=[0.0, 0.8], help="taking turns by row")
    add("--batch", type=int, default=256, help="rows written side by side")
    add("--seconds", type=float, help="begin no batch after that long")
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--dtype", default="auto")
    return parser
