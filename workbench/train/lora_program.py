"""`workbench train lora`: train a LoRA adapter for a task, measure it, and write its card.

With `--measure` nothing is trained: the folder's adapter is measured again on this machine, and its
card rewritten.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from workbench.data.tasks import TASKS
from workbench.train.card import read_metrics
from workbench.train.lora import LoRASettings, train_lora
from workbench.train.lora_card import measure_adapter, training_facts, write_adapter_card

_DEFAULTS = LoRASettings()


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    folder, model = Path(arguments.out), arguments.model
    if arguments.measure:
        metrics = read_metrics(folder)
    else:
        run = train_lora(
            arguments.task,
            folder,
            model=model,
            seconds=None if arguments.steps else arguments.seconds,
            steps=arguments.steps,
            settings=_settings(arguments),
            callback=lambda row: print(json.dumps(row), flush=True),
            device=arguments.device,
            progress=False,
        )
        command = shlex.join(["workbench", "train", "lora", *argv])
        metrics = {"base": model} | training_facts(run, command)
        write_adapter_card(folder, metrics)  # first of all, whatever may go wrong in what follows
    if arguments.held_out:
        metrics |= measure_adapter(folder, metrics["task"], model=model, device=arguments.device)
        write_adapter_card(folder, metrics)
        print(json.dumps(metrics["exact_match"]), file=sys.stderr, flush=True)
    return 0


def _settings(arguments: argparse.Namespace) -> LoRASettings:
    return LoRASettings(
        rank=arguments.rank,
        alpha=arguments.rank * arguments.scale,
        batch=arguments.batch,
        lr=arguments.lr,
        examples=arguments.examples,
        seed=arguments.seed,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("workbench train lora", description=__doc__)
    add = parser.add_argument
    add("--task", choices=sorted(TASKS), default="sql", help="what to learn")
    add("--out", required=True, help="the adapter's folder")
    add("--model", default="tinypy", help="the base: a name or a checkpoint folder")
    add("--rank", type=int, default=_DEFAULTS.rank)
    add("--scale", type=float, default=2.0, help="alpha over rank")
    add("--seconds", type=float, default=60.0, help="in the loop")
    add("--steps", type=int, help="budget in steps instead of seconds")
    add("--batch", type=int, default=_DEFAULTS.batch)
    add("--lr", type=float, default=_DEFAULTS.lr, help="peak learning rate")
    add("--examples", type=int, default=_DEFAULTS.examples, help="distinct draws to learn from")
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--measure", action="store_true", help="only measure the adapter in --out again")
    held = "measure on the held-out examples (the default)"
    add("--held-out", action=argparse.BooleanOptionalAction, default=True, help=held)
    return parser
