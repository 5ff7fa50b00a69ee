"""What speculation costs and gives on a GPU, with random weights and synthetic acceptance.

A model's shape with random weights, and an EAGLE-3 head of random weights that drafts chains; a
draft token is accepted with the probability that makes the acceptance length the one asked for. The
text means nothing, the times are real. So with a draft model of an eighth of the layers. Beside
them "free drafts", which cost nothing to propose: what verification alone leaves of the limit,
which is the acceptance length itself. Plain decoding starts its passes ahead, as the engine's loops
do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from workbench.bench.gpu import require_gpu, synchronize
from workbench.bench.gpu_engine import random_model
from workbench.bench.gpu_workloads import get_shape
from workbench.bench.measure import Figures, Row, machine
from workbench.build import build
from workbench.config import EngineConfig, ModelConfig
from workbench.draft import Draft
from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.models import DecoderLM
from workbench.sampling_params import SamplingParams
from workbench.speculation import DraftModel, ProposalContext, SpeculationConfig
from workbench.speculation.eagle import EagleProposer
from workbench.speculation.heads import TreeShape
from workbench.speculation.heads.eagle3 import Eagle3Flags, Eagle3Head, default_aux_layers
from workbench.speculation.heads.vocabulary import DraftVocabulary

_DRAFT_VOCAB = 32_000  # as published for llama
_TREE_NODES, _TREE_WIDTH = 59, 8  # with the root 60, as EAGLE-2 counts them
_PROMPT, _WARM_UP = 128, 6
_PLAIN = "plain"
_PARTS = ("schedule", "run", "sample", "commit")


class Fixed:
    """Proposes the same tokens always, in a shape of `parents`, at no cost."""

    needs: tuple[str, ...] = ()

    def __init__(self, name: str, parents: tuple[int, ...]) -> None:
        self.name = name
        self.draft = Draft(tuple(range(100, 100 + len(parents))), parents, proposer=name)

    def propose(self, context: ProposalContext) -> list[Draft | None]:
        """Return it for each candidate."""
        return [self.draft.first(candidate.max_tokens) for candidate in context.candidates]


@dataclass(slots=True)
class Measured:
    """Of each round: seconds a step, tokens a step of each sequence, and the parts of a step."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)

    def part(self, name: str) -> float:
        """Return the median seconds of a part."""
        return statistics.median(parts.get(name, 0.0) for parts in self.parts)


Variants = Mapping[str, tuple[Any, SpeculationConfig | None]]


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure everything that `workbench bench speculation` is asked for; return the rows."""
    shape = get_shape(arguments.shape)
    device = require_gpu()
    batches = [int(size) for size in arguments.batch.split(",")]
    named = {"device": torch.cuda.get_device_name(device), "shape": arguments.shape}
    print(json.dumps(where := machine() | named))
    model = random_model(shape, device)
    head, draft = random_head(model), random_model(draft_shape(model.config), device)
    settings: dict[str, Any] = {"device": str(device), "prefix_reuse": False, "seed": 0}
    settings |= {"max_sequences": max(batches), "max_batch_tokens": 8192}
    longest = _PROMPT + (arguments.depth + 1) * (_WARM_UP + arguments.steps + 2)
    settings["num_blocks"] = max(batches) * (longest // 16 + 2) + 64
    rows: list[Row] = []
    with build(EngineConfig(**settings), model=model) as engine:
        for size in batches:
            drafts = arguments.depth, arguments.length
            variants = variants_of(head, draft, *drafts, alone=size == 1)
            measured = race(engine, variants, size, arguments.steps, arguments.repeats)
            rows += report(measured, size, arguments.length, where)
        print(engine.runner.describe()["mode"])
        if engine.runner.graphs is not None:
            print(engine.runner.graphs.describe())
    return rows


def random_head(model: DecoderLM) -> Eagle3Head:
    """Return an EAGLE-3 head of the target's width with random weights, made on its device."""
    config, parameter = model.config, next(model.parameters())
    own = replace(config, num_layers=1, tied_head=False, windows=())
    size = min(_DRAFT_VOCAB, config.vocab_size)
    spread = torch.arange(size) * (config.vocab_size // size)
    vocabulary = DraftVocabulary.of(spread, config.vocab_size)
    flags = Eagle3Flags(default_aux_layers(config.num_layers))
    with torch.device(parameter.device):
        head = Eagle3Head(model, own, flags, vocabulary=vocabulary)
    head = head.to(parameter.device, parameter.dtype)
    head.init_weights()
    return head.requires_grad_(False)


def draft_shape(config: ModelConfig) -> ModelConfig:
    """Return the shape of a draft model: an eighth of the layers, and one matrix for both ends."""
    layers = max(1, config.num_layers // 8)
    return replace(config, num_layers=layers, windows=config.windows[:layers], tied_head=True)


def variants_of(
    head: Eagle3Head, draft: DecoderLM, depth: int, length: float, *, alone: bool
) -> Variants:
    """Return what is measured; alone: also trees of 60 nodes, and drafts switched off."""
    synthetic = SpeculationConfig(synthetic_acceptance=rate_of(length, depth), max_depth=depth)
    chain = tuple(range(-1, depth - 1))
    found: dict[str, tuple[Any, SpeculationConfig | None]] = {
        _PLAIN: (None, None),
        "free drafts": (Fixed("free drafts", chain), synthetic),
        "eagle3": (EagleProposer(head, length=depth), synthetic),
        "draft model": (DraftModel(draft, depth), synthetic),
        "eagle3, adaptive": (EagleProposer(head, length=depth), replace(synthetic, adaptive=True)),
    }
    if alone:
        # Every node behind the one `_TREE_WIDTH` before it: paths side by side, 7 or 8 deep.
        parents = tuple(max(-1, node - _TREE_WIDTH) for node in range(_TREE_NODES))
        none = SpeculationConfig(synthetic_acceptance=0.0)
        found["tree of 60 nodes"] = Fixed("tree", parents), none
        shape = TreeShape(_TREE_NODES, depth, _TREE_WIDTH)
        found["eagle3, tree of 60"] = EagleProposer(head, shape=shape), synthetic
        off = SpeculationConfig(lengths=((1, 0),))
        found["eagle3, off"] = EagleProposer(head, length=depth), off
    return found


def rate_of(length: float, depth: int) -> float:
    """Return the acceptance rate a for which (1 - a^(depth + 1)) / (1 - a) is `length`.

    Raises `ConfigError` for a length that drafts of this depth cannot have.
    """
    if not 1 <= length < depth + 1:
        fix = f"Give 1 or more, below {depth + 1}."
        raise ConfigError("--length", length, f"drafts of {depth} tokens cannot have it", fix)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(middle**i for i in range(depth + 1)) < length:
            low = middle
        else:
            high = middle
    return low


def race(
    engine: Engine, variants: Variants, size: int, steps: int, rounds: int
) -> dict[str, Measured]:
    """Measure `steps` steps of `size` sequences with each variant, so many rounds.

    A round before them warms up: kernels are compiled and graphs captured there. One variant after
    the other, as a proposer that is taken anew begins with empty caches.
    """
    measured = {name: Measured() for name in variants}
    for name, (proposer, config) in variants.items():
        engine.swap(proposer="off" if proposer is None else proposer, speculation=config)
        for turn in range(-1, rounds):
            seconds, tokens, parts = _measure(engine, size, steps)
            if turn >= 0:
                measured[name].seconds.append(seconds)
                measured[name].tokens.append(tokens)
                measured[name].parts.append(parts)
    return measured


def _measure(engine: Engine, size: int, steps: int) -> tuple[float, float, dict[str, float]]:
    cache = engine.cache
    room = min(engine.model.config.context, cache.num_blocks * cache.block_size // size) - _PROMPT
    params = SamplingParams(max_tokens=room, temperature=0, ignore_eos=True)
    vocab = engine.model.config.vocab_size
    prompts = [[(7 * i + j) % vocab for j in range(_PROMPT)] for i in range(size)]
    names = [engine.add(prompt, params) for prompt in prompts]
    while any(engine.find(name).num_output_tokens < 1 for name in names):
        engine.step()
    engine.run(_WARM_UP)
    before = _tokens(engine, names)
    synchronize(engine.runner.device)
    begin = time.perf_counter()
    records = engine.run(steps)
    synchronize(engine.runner.device)
    seconds = (time.perf_counter() - begin) / len(records)
    made = (_tokens(engine, names) - before) / (size * len(records))
    engine.discard(names)
    parts = {part: statistics.median(r.seconds.get(part, 0.0) for r in records) for part in _PARTS}
    return seconds, made, parts


def _tokens(engine: Engine, names: list[str]) -> int:
    return sum(engine.find(name).num_output_tokens for name in names)


def report(
    measured: Mapping[str, Measured], size: int, length: float, where: dict[str, Any]
) -> list[Row]:
    """Print what a batch size gave, and return it as rows: times as fast as plain decoding."""
    plain = measured[_PLAIN]
    print(f"\n{size} at once; the limit of drafts that cost nothing: {length:.2f}x")
    rows = []
    for name, one in measured.items():
        ratios = sorted(
            (tokens / seconds) / (own / base)
            for tokens, seconds, own, base in zip(
                one.tokens, one.seconds, plain.tokens, plain.seconds, strict=True
            )
        )
        ratio, step = statistics.median(ratios), statistics.median(one.seconds)
        longer = step / statistics.median(plain.seconds) - 1
        parts = ", ".join(f"{part} {1e6 * one.part(part):.0f}" for part in _PARTS)
        print(
            f"  {name:<18}{1e6 * step:>8.0f} µs a step ({longer:+.1%})  "
            f"{statistics.median(one.tokens):.2f} tokens a step  {ratio:.2f}x plain "
            f"[{ratios[0]:.2f}..{ratios[-1]:.2f}] n={len(ratios)}  (host, µs: {parts})",
            flush=True,
        )
        facts = {"step": step, "longer": longer, "tokens": statistics.median(one.tokens)}
        what = "speculation", f"{size} at once", name, "times plain decoding"
        rows.append(Row(*what, *Figures.of(ratios), where=where | facts))
    return rows
