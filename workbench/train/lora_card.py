"""How many answers an adapter gets right, and the card that says so.

`measure_adapter` asks the engine for every held-out example, through the adapter and through the
base, in one batch. `write_adapter_card` makes README.md from `metrics.json` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.build import build
from workbench.config import EngineConfig
from workbench.data.task_writers import Example
from workbench.data.tasks import exact_matches, get_task, load_held_out
from workbench.engine import Engine
from workbench.sampling_params import SamplingParams
from workbench.train.card import write_card
from workbench.train.lora import LoRARun

_NAME = "measured"
_BLOCKS = 512  # 32 sequences of 256 tokens, more than any task takes


def measure_adapter(
    folder: str | Path,
    task: str,
    *,
    model: str | Path = "tinypy",
    device: str = "auto",
    examples: Sequence[Example] | None = None,
) -> dict[str, Any]:
    """Return the exact-match rates of base and adapter on held-out examples, with their texts.

    Greedy, both in one batch of the engine, in the checkpoint's own type; an answer ends at the end
    token or at the task's stop text. Raises `AdapterError` for an adapter that cannot be read.
    """
    asked = load_held_out(task) if examples is None else list(examples)
    config = EngineConfig(model=str(model), device=device, max_sequences=32, num_blocks=_BLOCKS)
    with build(config) as engine:
        engine.loras.load(_NAME, folder)
        texts = answers(engine, task, asked, [None, _NAME])
        where = str(engine.model.device.type)
    rates = {
        name: sum(exact_matches(got, asked)) / len(asked)
        for name, got in zip(("base", "adapter"), texts, strict=True)
    }
    shown = [
        {"prompt": e.prompt, "answer": e.answer, "base": base, "adapter": adapter}
        for e, base, adapter in list(zip(asked, *texts, strict=True))[:3]
    ]
    return {"exact_match": rates, "num_examples": len(asked), "on": where, "samples": shown}


def answers(
    engine: Engine, task: str, examples: Sequence[Example], lora: Sequence[str | None]
) -> list[list[str]]:
    """Return what is answered to each example through each adapter of `lora`, in one batch.

    Returns a list for each adapter, in the order of `examples`.
    """
    about = get_task(task)
    params = SamplingParams(max_tokens=about.max_tokens, temperature=0.0, stop=(about.stop,))
    prompts: list[Any] = [example.prompt for example in examples] * len(lora)
    names = [name for name in lora for _ in examples]
    texts = [out.outputs[0].text for out in engine.generate(prompts, params, lora=names)]
    size = len(examples)
    return [texts[i * size : (i + 1) * size] for i in range(len(lora))]


def training_facts(run: LoRARun, command: str) -> dict[str, Any]:
    """Return what the card says of a training."""
    settings = run.settings
    return {
        "task": run.task,
        "command": command,
        "device": run.device,
        "num_parameters": run.num_parameters,
        "rank": settings.rank,
        "alpha": settings.alpha,
        "batch": settings.batch,
        "lr": settings.lr,
        "examples": settings.examples,
        "seed": settings.seed,
        "steps": run.steps,
        "log": run.log,
    }


def write_adapter_card(folder: Path, metrics: dict[str, Any]) -> None:
    """Write `metrics.json`, and the card made from it; the adapter's size is read off its file."""
    files = folder.glob("*.safetensors")
    num_bytes = sum(path.stat().st_size for path in files)
    write_card(folder, metrics | {"bytes": num_bytes}, adapter_card)


def adapter_card(metrics: dict[str, Any]) -> str:
    """Return the card of an adapter, made from its recorded figures alone."""
    task, last = metrics["task"], metrics["log"][-1]
    measured = ""
    if "exact_match" in metrics:
        rates = metrics["exact_match"]
        samples = "\n\n".join(_sample(sample) for sample in metrics["samples"])
        measured = f"""
| on {metrics["num_examples"]} held-out examples | exact match |
|---|---:|
| base | {rates["base"]:.1%} |
| adapter | {rates["adapter"]:.1%} |

Greedy, measured in the engine on {metrics["on"]}; the examples are `datasets/lora/{task}.jsonl`.
The base is asked in the same words, with no example before them. The first of them:

{samples}
"""
    return f"""---
base_model: {metrics["base"]}
library_name: peft
license: apache-2.0
---

# {task} for `{metrics["base"]}`

A LoRA adapter that writes {get_task(task).about}.
Rank {metrics["rank"]}, alpha {metrics["alpha"]:g}, {metrics["num_parameters"]:,} parameters,
{metrics["bytes"] / 1e6:.2f} MB in bfloat16, in PEFT's format.
{measured}
Trained with PEFT for {metrics["steps"]:,} steps of {metrics["batch"]} examples,
{last["seconds"]:.0f} s on {metrics["device"]}, final loss {last["loss"]:.4f}, by

    {metrics["command"]}

on {metrics["examples"]:,} examples that `workbench/data/task_writers.py` wrote (seed
{metrics["seed"]}), without those that the hold-out rule keeps back. Everything recorded is in
`metrics.json`. Licence: Apache-2.0, as the base model's.
"""


def _sample(sample: dict[str, str]) -> str:
    rows = [("prompt", sample["prompt"]), ("adapter", sample["adapter"]), ("base", sample["base"])]
    text = "\n".join(f"{name:8}{text.rstrip()!r}" for name, text in rows)
    return f"```\n{text}\n```"
