"""Train the embedded base model, and export it.

Run as `workbench train base` or `python -m workbench.train.base`, as often as it takes: each call
goes on from `--out/state.pt`. Needs a corpus made by `workbench.data.corpus`; downloads nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoTokenizer

from workbench.data.token_arrays import read_tokens
from workbench.train.attention_choice import fastest_attention
from workbench.train.batches import Windows
from workbench.train.completion import complete
from workbench.train.evaluate import held_out_scores, load_held_out
from workbench.train.export import export_model
from workbench.train.loop import CallLimits, LoopSettings, Run, train
from workbench.train.model import cast_parameters, new_model, tinypy_config, window_loss
from workbench.train.optimizer import MasterWeights

_HELD_OUT_WINDOWS = 64  # for the figure in the log


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    started = time.perf_counter()
    arguments = _parser().parse_args(argv)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    run = build_run(arguments, device)
    if (out / "state.pt").exists():
        run.load(out / "state.pt")
        print(f"going on from step {run.step}, {run.progress.fraction:.1%}", flush=True)
    with _attention(arguments, device):
        if not run.progress.done:
            limits = call_limits(arguments, started)
            train(run, limits, _held_out_windows(arguments, device), out / "state.pt")
        print(f"step {run.step}, {run.progress.fraction:.1%} of the budget", flush=True)
        if arguments.export:
            metrics = evaluate(run, arguments, device)
            folder = Path(arguments.export)
            export_model(run.model, Path(arguments.data) / "tokenizer", folder, metrics)
            shown = {k: v for k, v in metrics.items() if k not in ("corpus", "log", "config")}
            print(json.dumps(shown, indent=1), flush=True)
    print(f"wall {time.perf_counter() - started:.0f} s", flush=True)
    return 0


def build_run(arguments: argparse.Namespace, device: torch.device) -> Run:
    """A run at step 0: model, masters, windows."""
    tokenizer = AutoTokenizer.from_pretrained(Path(arguments.data) / "tokenizer")
    config = tinypy_config(
        vocab_size=len(tokenizer),
        hidden_size=arguments.hidden,
        num_layers=arguments.layers,
        num_heads=arguments.heads,
        num_kv_heads=arguments.kv_heads,
        intermediate_size=arguments.intermediate,
        context=arguments.context,
    )
    model = new_model(config, arguments.seed).to(device)
    weights = MasterWeights(model, arguments.optimizer, arguments.weight_decay, arguments.ema_decay)
    cast_parameters(model, torch.bfloat16)
    windows = Windows(
        read_tokens(Path(arguments.data) / "train.bin"), arguments.context, arguments.seed, device
    )
    settings = LoopSettings(
        batch_windows=arguments.batch_windows,
        micro_windows=min(arguments.micro_windows, arguments.batch_windows),
        peak_rate=arguments.lr,
        warmup=arguments.warmup,
        max_tokens=arguments.tokens,
    )
    run = Run(model, weights, windows, settings)
    if not arguments.eager:
        run.compiled = torch.compile(window_loss, dynamic=False)
    return run


def call_limits(arguments: argparse.Namespace, started: float) -> CallLimits:
    """When this call stops, and whether the budget has to be used up by then."""
    return CallLimits(
        stop_at=started + arguments.stop_after * 60,
        seconds_total=arguments.minutes_total * 60,
        finish=arguments.finish,
        save_seconds=arguments.save_minutes * 60,
    )


def evaluate(run: Run, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Score raw and averaged weights on the held-out files, load the better, complete prompts."""
    data = Path(arguments.data)
    files = load_held_out(data)
    scores = {}
    candidates: dict[str, list[Any]] = {
        "raw": run.weights.masters,
        "moving average": run.weights.averages,
    }
    for name, weights in candidates.items():
        run.weights.load_into_model(weights)
        scores[name] = held_out_scores(run.model, files, arguments.context)
    chosen = min(scores, key=lambda name: scores[name]["overall"]["loss"])
    run.weights.load_into_model(candidates[chosen])
    run.model.eval()
    speeds = [row["tokens_per_second"] for row in run.log] or [0]
    return {
        "held_out": scores[chosen],
        "chosen_weights": chosen,
        "weights_bits_per_byte": {n: s["overall"]["bits_per_byte"] for n, s in scores.items()},
        "completions": complete(run.model, AutoTokenizer.from_pretrained(data / "tokenizer")),
        "num_parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "config": run.model.config.to_dict(),
        "settings": {
            key: value
            for key, value in vars(arguments).items()
            if key not in ("data", "out", "export", "device", "stop_after", "finish")
        },
        "progress": asdict(run.progress),
        "steps": run.step,
        "tokens_per_second": round(statistics.median(speeds)),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "corpus": json.loads((data / "manifest.json").read_text(encoding="utf-8")),
        "log": run.log,
    }


def _held_out_windows(
    arguments: argparse.Namespace, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed windows over the held-out files, end to end, for the figure in the log."""
    ids = [i for file in load_held_out(Path(arguments.data)) for i in file.ids]
    available = (len(ids) - 1) // arguments.context
    count = min(_HELD_OUT_WINDOWS, available)
    if not count:
        raise SystemExit("the held-out files are shorter than one context: make a larger corpus")
    picked = torch.linspace(0, available - 1, count).long() * arguments.context
    rows = torch.tensor(ids)[picked[:, None] + torch.arange(arguments.context + 1)].to(device)
    return rows[:, :-1], rows[:, 1:]


def _attention(arguments: argparse.Namespace, device: torch.device) -> AbstractContextManager[None]:
    if device.type != "cuda":
        return nullcontext()
    head_dim = arguments.hidden // arguments.heads
    heads = (arguments.heads, arguments.kv_heads, head_dim)
    backend = SDPBackend.FLASH_ATTENTION
    if arguments.attention == "fastest":
        backend = fastest_attention(arguments.micro_windows, arguments.context, *heads)
    # the others are for what the first refuses: generation with a padding mask
    order = [backend, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    context: AbstractContextManager[None] = sdpa_kernel(order, set_priority=True)
    return context


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("workbench train base", description=__doc__)
    add = parser.add_argument
    add("--data", required=True, help="folder made by workbench.data.corpus")
    add("--out", required=True, help="folder for state.pt")
    add("--export", help="evaluate, and write the model folder here")
    add("--minutes-total", type=float, default=24.0, help="stepping time over all calls")
    add("--tokens", type=int, help="budget in tokens instead of minutes")
    add("--stop-after", type=float, default=math.inf, help="minutes of wall time for this call")
    add("--finish", action="store_true", help="fit the rest of the schedule into this call")
    add("--save-minutes", type=float, default=3.0)
    add("--optimizer", choices=("muon", "adamw"), default="muon")
    add("--lr", type=float, default=3e-3, help="peak learning rate")
    add("--warmup", type=float, default=0.01, help="part of the budget")
    add("--weight-decay", type=float, default=0.1)
    add("--ema-decay", type=float, default=0.998)
    add("--batch-windows", type=int, default=192)
    add("--micro-windows", type=int, default=96)
    add("--context", type=int, default=2048)
    add("--layers", type=int, default=8)
    add("--hidden", type=int, default=512)
    add("--heads", type=int, default=8)
    add("--kv-heads", type=int, default=2)
    add("--intermediate", type=int, default=1280)
    add("--seed", type=int, default=0)
    add("--attention", choices=("flash", "fastest"), default="flash", help="on a GPU")
    add("--device")
    add("--eager", action="store_true", help="no torch.compile")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
