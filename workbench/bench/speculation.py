"""`workbench bench speculation`: every proposer beside plain decoding of the same engine.

On a CPU: the embedded model on held-out prompts, greedily, engines in turn in one process; what is
printed is the speed against plain decoding in the same round, and how much was accepted. On a GPU,
see `workbench.bench.speculation_gpu`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from workbench.bench.measure import Figures, Row, Samples, append_rows, interleave, machine
from workbench.build import build
from workbench.config import EngineConfig
from workbench.data.prompts import load_prompts
from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.models import DecoderLM, load_model
from workbench.request import RequestOutput
from workbench.sampling_params import SamplingParams
from workbench.speculation import NGram, SpeculationConfig, get_proposer
from workbench.speculation.named import PLAIN

_SHIPPED = ("medusa", "eagle3", "draft")  # names under `adapters/<model>/`
PLAINLY = "plain"

Variants = Mapping[str, tuple[Any, SpeculationConfig | None]]


def main(argv: list[str] | None = None) -> int:
    """Print the table and write the rows; return 0."""
    arguments = _parser().parse_args(argv)
    on_gpu = torch.cuda.is_available() if arguments.device == "auto" else arguments.device != "cpu"
    if on_gpu:
        from workbench.bench.speculation_gpu import run

        rows = run(arguments)
    else:
        rows = _run(arguments)
    if arguments.rows:
        append_rows(Path(arguments.rows), rows)
    return 0


def _run(arguments: argparse.Namespace) -> list[Row]:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model, device="cpu", dtype=arguments.dtype)
    variants = _variants(model, arguments.model)
    chosen = arguments.proposers.split(",") if arguments.proposers else list(variants)
    if unknown := [name for name in chosen if name not in variants]:
        raise ConfigError("--proposers", unknown[0], "is none", f"Known: {', '.join(variants)}.")
    print(json.dumps(where := machine() | {"model": arguments.model, "dtype": arguments.dtype}))
    rows: list[Row] = []
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(_engine(model, *variants[name]))
            for name in dict.fromkeys([PLAINLY, *chosen])
        }
        for size in map(int, arguments.sizes.split(",")):
            rows += _race(engines, size, arguments, where)
    return rows


def _variants(model: DecoderLM, name: str) -> dict[str, tuple[Any, SpeculationConfig | None]]:
    """Return proposers and settings by name: those that need no weights, and what ships."""
    found: dict[str, tuple[Any, SpeculationConfig | None]] = {PLAINLY: (None, None)}
    found |= {proposer: (make(), None) for proposer, make in PLAIN.items()}
    for shipped in _SHIPPED:
        try:
            found[shipped] = get_proposer(shipped, model, name), None
        except ConfigError:
            continue  # not trained yet for this model
        if shipped != "draft":
            found[f"{shipped}, tree"] = get_proposer(shipped, model, name, trees=True), None
    found["ngram, adaptive"] = NGram(), SpeculationConfig(adaptive=True)
    found["ngram, off"] = NGram(), SpeculationConfig(lengths=((1, 0),))
    return found


def _engine(model: DecoderLM, proposer: Any, config: SpeculationConfig | None) -> Engine:
    settings: dict[str, Any] = {
        "device": "cpu",
        "num_blocks": 640,
        "prefix_reuse": False,
        "seed": 0,
    }
    settings |= {"proposer": proposer, "speculation": config}
    return build(EngineConfig(**settings), model=model)


def _race(
    engines: Mapping[str, Engine], size: int, arguments: argparse.Namespace, where: dict[str, Any]
) -> list[Row]:
    """Run batches of `size` prompts through every engine in turn; print and return what came."""
    suite, count = load_prompts(), arguments.batches if size == 1 else 1
    step = max(1, len(suite) // (size * count))
    prompts = [suite[i * step % len(suite)] for i in range(size * count)]
    batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    params = SamplingParams(max_tokens=arguments.tokens, temperature=0, ignore_eos=True)

    def generate(engine: Engine, repeat: int) -> list[RequestOutput]:
        return [output for batch in batches for output in engine.generate(batch, params)]

    calls = {name: partial(generate, engine) for name, engine in engines.items()}
    samples, results = interleave(calls, arguments.repeats, lambda line: None)
    print(f"\n{size} at once, {arguments.tokens} tokens each, {count} batches")
    tokens = len(prompts) * arguments.tokens
    pairs = samples.items()
    return [_row(name, size, s, samples[PLAINLY], results, tokens, where) for name, s in pairs]


def _row(
    name: str,
    size: int,
    samples: Samples,
    plain: Samples,
    results: Mapping[str, list[RequestOutput]],
    tokens: int,
    where: dict[str, Any],
) -> Row:
    outputs = results[name]
    ratios = sorted(
        a / b for a, b in zip(plain.seconds, samples.seconds, strict=True)
    )  # of one round
    ratio, load = statistics.median(ratios), max(samples.foreign_cores)
    drafts = sum(output.metrics.num_drafts for output in outputs)
    accepted = sum(output.metrics.num_accepted for output in outputs)
    length = 1 + accepted / drafts if drafts else 1.0
    pairs = zip(outputs, results[PLAINLY], strict=True)
    same = all(a.outputs[0].token_ids == b.outputs[0].token_ids for a, b in pairs)
    print(
        f"  {name:<18}{tokens / samples.median:>8.0f} tok/s {ratio:>6.2f}x plain "
        f"[{ratios[0]:.2f}..{ratios[-1]:.2f}] n={len(ratios)}  acceptance length {length:.2f}, "
        f"{tokens / (tokens - accepted):.2f} tokens a pass  "
        f"{'same tokens' if same else 'OTHER TOKENS'}  other load {load:.2f} cores",
        flush=True,
    )
    facts = {"acceptance length": length, "accepted": accepted, "drafts": drafts, "same": same}
    what = "speculation", f"{size} at once", name, "times plain decoding"
    return Row(*what, *Figures.of(ratios), foreign_cores=load, where=where | facts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workbench bench speculation", description=__doc__)
    add = parser.add_argument
    add("--device", default="auto", help="auto (a GPU if there is one), cpu or cuda")
    add("--repeats", type=int, default=5, help="rounds in which all take their turn")
    add("--rows", help="append the rows to this JSON-lines file")
    cpu = parser.add_argument_group("on a CPU")
    cpu.add_argument("--model", default="tinypy")
    cpu.add_argument("--dtype", default="auto")
    cpu.add_argument("--proposers", default="", help="names parted by commas (default: all)")
    cpu.add_argument("--sizes", default="1,4,16", help="prompts at once")
    cpu.add_argument("--batches", type=int, default=8, help="prompts one after the other, at 1")
    cpu.add_argument("--tokens", type=int, default=128)
    cpu.add_argument("--threads", type=int, help="torch threads (default: all cores)")
    gpu = parser.add_argument_group("on a GPU")
    gpu.add_argument("--shape", default="llama-8b")
    gpu.add_argument("--batch", default="1,8,32,128", help="sequences at once")
    gpu.add_argument("--depth", type=int, default=5, help="tokens of a draft")
    gpu.add_argument("--length", type=float, default=3.5, help="synthetic acceptance length")
    gpu.add_argument("--steps", type=int, default=48, help="of each measurement")
    return parser
