"""`workbench train measure`: the acceptance that heads reach in the engine, at any temperature.

Unlike `measure_acceptance`, everything runs as it is served: proposer, trees, verification.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from workbench.build import build
from workbench.config import EngineConfig
from workbench.data.prompts import load_prompts
from workbench.models import DecoderLM, load_model
from workbench.request import RequestOutput
from workbench.sampling_params import SamplingParams
from workbench.speculation import Proposer, get_proposer
from workbench.train.card import read_metrics, write_card
from workbench.train.heads_export import head_card


def served_acceptance(
    model: DecoderLM,
    proposer: Proposer | None,
    prompts: Sequence[str | Sequence[int]],
    *,
    temperature: float = 0.0,
    max_tokens: int = 128,
    seed: int = 0,
    max_sequences: int = 32,
) -> dict[str, Any]:
    """Return how far a proposer's drafts were right, over all prompts, and the tokens that came.

    length: tokens a pass with a draft, the bonus token counted; accepted[i]: how often a draft was
    right to a depth of i + 1; num_drafts; num_tokens; token_ids of each prompt.
    """
    longest = model.config.context
    blocks = -(-longest // 16) * max_sequences
    config = EngineConfig(
        max_sequences=max_sequences, num_blocks=blocks, proposer=proposer, seed=seed
    )
    params = [
        SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed + number)
        for number in range(len(prompts))
    ]
    given = [prompt if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    with build(config, model=model) as engine:
        outputs: list[RequestOutput] = engine.generate(given, params)
    metrics = [output.metrics for output in outputs]
    drafts = sum(m.num_drafts for m in metrics)
    counts = map(sum, zip_longest(*(m.accepted_at for m in metrics), fillvalue=0))
    accepted = [count / max(1, drafts) for count in counts]
    return {
        "length": 1 + sum(accepted),
        "accepted": [round(share, 4) for share in accepted],
        "num_drafts": drafts,
        "num_tokens": sum(m.num_output_tokens for m in metrics),
        "token_ids": [list(output.outputs[0].token_ids) for output in outputs],
    }


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    model = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
    prompts = load_prompts()[:: arguments.every]
    rows: dict[str, dict[str, Any]] = {name: {} for name in arguments.proposers}
    for temperature in arguments.temperatures:
        plain = served_acceptance(
            model, None, prompts, temperature=temperature, max_tokens=arguments.max_tokens
        )
        for name in arguments.proposers:
            # Cards say what trees reach, on whatever device that is found out.
            proposer = get_proposer(name, model, arguments.model, trees=True)
            found = served_acceptance(
                model, proposer, prompts, temperature=temperature, max_tokens=arguments.max_tokens
            )
            pairs = zip(plain["token_ids"], found.pop("token_ids"), strict=True)
            same = sum(one == other for one, other in pairs)
            found |= {"num_prompts": len(prompts), "same_as_plain": same}
            print(json.dumps({"proposer": name, "temperature": temperature, **found}), flush=True)
            rows[name][f"engine, {_drafted(proposer)}, temperature {temperature:g}"] = found
    if arguments.write:
        for name, acceptance in rows.items():
            _record(Path(name), acceptance, len(prompts), arguments.max_tokens)
    return 0


def _drafted(proposer: Any) -> str:
    """Return what a proposer says that it drafts."""
    return str(proposer.describe()["draft"])


def _record(folder: Path, acceptance: dict[str, Any], num_prompts: int, max_tokens: int) -> None:
    """Put figures into a head's `metrics.json` in place of those there, and renew its card."""
    metrics = read_metrics(folder)
    metrics |= {"num_prompts": num_prompts, "max_tokens": max_tokens, "acceptance": acceptance}
    write_card(folder, metrics, head_card)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("workbench train measure", description=__doc__)
    add = parser.add_argument
    add("proposers", nargs="+", help="names, or folders of heads or draft models")
    add("--model", default="tinypy", help="the target: a name, folder or hub id")
    add("--temperatures", type=float, nargs="+", default=[0.0, 0.8])
    add("--every", type=int, default=2, help="measure on every n-th prompt of the suite")
    add("--max-tokens", type=int, default=128)
    add("--write", action="store_true", help="into the folders' figures and cards")
    add("--device", default="auto")
    add("--dtype", default="auto")
    return parser
