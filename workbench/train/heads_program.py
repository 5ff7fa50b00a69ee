"""`workbench train medusa|eagle3|draft`: train a head for a model, measure it, and export it.

Each call goes on from `--out/state.pt`. The text is Python of this machine, or a corpus made by
`python -m workbench.data.corpus --tokenizer …` with the model's own tokenizer; mixed with what
`workbench train own-text` had the model write.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.data.prompts import load_prompts
from workbench.data.token_arrays import read_tokens
from workbench.errors import ConfigError
from workbench.models import DecoderLM, load_model
from workbench.speculation import DraftModel, get_proposer
from workbench.speculation.heads import MedusaHead, TreeShape, grow_paths, load_head
from workbench.train.heads import HeadSettings, train_head
from workbench.train.heads_acceptance import Drafter, measure_acceptance, medusa_accuracy
from workbench.train.heads_capture import capture, training_backend
from workbench.train.heads_data import frequent_ids, python_texts, token_stream
from workbench.train.heads_export import export_head
from workbench.train.heads_log import Evaluation
from workbench.train.heads_writing import own_rows


def main(kind: str, argv: Sequence[str]) -> int:
    """The command line of one kind; returns the exit status."""
    arguments = _parser(kind).parse_args(argv)
    model = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
    stream = text_stream(model, arguments.data, arguments.megabytes)
    own = None if arguments.own is None else read_rows(model, arguments.own)
    written = 0 if own is None else own.numel()
    print(f"{len(stream):,} tokens of text, {written:,} of the model's own", flush=True)
    evaluation = None
    if arguments.every:
        evaluation = Evaluation.of(model, load_prompts()[:: arguments.every], arguments.max_tokens)
    narrow = model.device.type == "cuda" if arguments.autocast is None else arguments.autocast
    settings = HeadSettings(
        arguments.batch,
        arguments.length,
        arguments.lr,
        optimizer=arguments.optimizer,
        autocast=narrow,
        own_share=arguments.own_share,
        seed=arguments.seed,
    )
    head, log = train_head(
        model,
        kind,
        stream,
        minutes=None if arguments.steps else arguments.minutes,
        steps=arguments.steps,
        out=arguments.out,
        settings=settings,
        prompts=evaluation,
        callback=lambda row: print(json.dumps(row), flush=True),
        measure_every=arguments.measure_every,
        progress=False,
        own_rows=own,
        begin_as=load_drafter(arguments.begin_as, model) if arguments.begin_as else None,
        **options(kind, arguments, stream),
    )
    command = shlex.join(["workbench", "train", kind, *argv])
    metrics = facts(kind, command, head, arguments) | {"acceptance": {}, "log": log}
    metrics["steps"] = log[-1]["step"]
    if arguments.export:  # first of all, whatever may go wrong in what follows
        export_head(head, Path(arguments.export), arguments.model, metrics)
    calibrate(head, model, stream, arguments.tree)
    if evaluation is not None:
        metrics["acceptance"] = measure(head, model, evaluation, arguments.tree)
        metrics |= {"num_prompts": len(evaluation.prompts), "max_tokens": arguments.max_tokens}
        print(json.dumps(metrics["acceptance"], indent=1), flush=True)
    if arguments.export:
        export_head(head, Path(arguments.export), arguments.model, metrics)
    return 0


def text_stream(model: DecoderLM, data: str | None, megabytes: float) -> Tensor:
    """Return the tokens of a corpus's folder, or of this machine's Python.

    Raises `ConfigError` for another tokenizer's corpus.
    """
    if data is None:
        return token_stream(python_texts(int(megabytes * 1e6)), model)
    _check_tokenizer(model, Path(data) / "tokenizer" / "tokenizer.json")
    return token_stream(read_tokens(Path(data) / "train.bin"), model)


def load_drafter(folder: str, model: DecoderLM) -> Drafter:
    """Return the head or draft model of a folder, in float32."""
    proposer = get_proposer(folder, model)
    if isinstance(proposer, DraftModel):
        return load_model(folder, device=str(model.device), dtype="float32")
    head = load_head(folder, model).float()
    assert isinstance(head, Drafter)
    return head


def read_rows(model: DecoderLM, path: str) -> Tensor:
    """Return what `workbench train own-text` wrote: [rows, length] int32."""
    return token_stream(np.load(path), model)


def options(kind: str, arguments: argparse.Namespace, stream: Tensor) -> dict[str, Any]:
    """Return the keywords of a kind's task."""
    names = {
        "medusa": ("num_heads", "own_matrix", "labels"),
        "eagle3": ("unroll", "intermediate_size"),
        "draft": ("num_layers", "hidden_size", "intermediate_size", "from_layers"),
    }[kind]
    given = {name: getattr(arguments, name) for name in names}
    if kind == "eagle3" and arguments.draft_vocab:
        given["draft_ids"] = frequent_ids(stream, arguments.draft_vocab)
    return given


def calibrate(head: Drafter, model: DecoderLM, stream: Tensor, num_nodes: int) -> None:
    """Give Medusa the tree that its accuracies on the model's own text are worth."""
    if not isinstance(head, MedusaHead):
        return
    [windows] = own_rows(model, stream, 64, 192, temperatures=(0.0,), seed=1)
    seen = capture(model, windows, head.needs, training_backend(model))
    head.paths = grow_paths(medusa_accuracy(head, seen), num_nodes)


def measure(
    head: Drafter, model: DecoderLM, on: Evaluation, num_nodes: int
) -> dict[str, dict[str, Any]]:
    """Return the acceptance of a head's chain, and of its tree where it has one."""
    is_model = isinstance(head, DecoderLM)
    tree = head.paths if isinstance(head, MedusaHead) else TreeShape(num_nodes, 6, 8)
    trees = {"chain": None} if is_model else {"chain": None, f"tree of {num_nodes}": tree}
    return {
        name: asdict(measure_acceptance(head, model, on.prompts, texts=on.texts, tree=shape))
        for name, shape in trees.items()
    }


def facts(kind: str, command: str, head: Drafter, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the card needs beside the figures."""
    on_cuda = next(head.parameters()).is_cuda
    own = arguments.own_share if arguments.own else 0
    text = (
        f"{1 - own:.0%} Python and {own:.0%} text that the model wrote itself" if own else "Python"
    )
    return {
        "kind": kind,
        "command": command,
        "num_parameters": sum(p.numel() for p in head.parameters()),
        "text": text,
        "device": torch.cuda.get_device_name() if on_cuda else platform.processor() or "a CPU",
    }


def _check_tokenizer(model: DecoderLM, path: Path) -> None:
    theirs = json.loads(path.read_text(encoding="utf-8"))["model"]
    assert model.tokenizer is not None
    ours = json.loads(model.tokenizer.hf.backend_tokenizer.to_str())["model"]
    if theirs["vocab"] != ours["vocab"]:
        fix = "Leave out --data, or make the corpus with the model's tokenizer."
        raise ConfigError("--data", str(path), "is not the model's tokenizer", fix)


def _parser(kind: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"workbench train {kind}", description=__doc__)
    add = parser.add_argument
    add("--model", default="tinypy", help="the target: a name, folder or hub id")
    add("--out", required=True, help="folder for state.pt")
    add("--begin-as", help="folder of a head, whose weights to begin with")
    add("--export", help="measure, and write the head to this folder")
    add("--data", help="a corpus of the model's tokenizer; else Python of this machine")
    add("--megabytes", type=float, default=20.0, help="of this machine's Python")
    add("--own", help="rows of the model's own text, from `workbench train own-text`")
    add("--own-share", type=float, default=0.5, help="part of each batch that those are")
    add("--minutes", type=float, default=10.0, help="in the loop, over all calls")
    add("--steps", type=int, help="budget in steps instead of minutes")
    add("--batch", type=int, default=32)
    add("--length", type=int, default=512)
    add("--lr", type=float, default=1e-3, help="peak learning rate")
    add("--optimizer", choices=("adamw", "muon"), default="adamw")
    narrow = "multiply in bfloat16 (the default on a GPU)"
    add("--autocast", action=argparse.BooleanOptionalAction, default=None, help=narrow)
    add("--measure-every", type=float, default=60.0, help="seconds between measurements")
    add("--tree", type=int, default=32, help="nodes of a drafted tree")
    add("--every", type=int, default=2, help="measure on every n-th prompt, 0: never")
    add("--max-tokens", type=int, default=128, help="tokens a prompt is gone on with")
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--dtype", default="auto")
    if kind == "medusa":
        add("--num-heads", type=int, default=3)
        add("--labels", choices=("target", "text"), default="target")
        shared = "heads end in the target's matrix (version 2)"
        add("--shared-matrix", dest="own_matrix", action="store_false", help=shared)
    elif kind == "eagle3":
        add("--unroll", type=int, default=7, help="passes of the training-time test")
        add("--draft-vocab", type=int, help="draft only that many, the most frequent tokens")
        add("--intermediate-size", type=int, help="of the head's layer; else the target's")
    else:
        add("--num-layers", type=int, default=2)
        add("--hidden-size", type=int, default=256)
        add("--intermediate-size", type=int, default=640)
        thinned = "begin as these layers of the target, in its own sizes"
        add("--from-layers", type=int, nargs="+", help=thinned)
    return parser
