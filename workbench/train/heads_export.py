"""A trained head as a folder to ship: weights in the published layout, figures, and a card of them.

Called by `workbench train medusa|eagle3|draft`. Everything the card says comes from what was
recorded; nothing is measured here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from workbench.models import DecoderLM
from workbench.models.checkpoint import WHOLE
from workbench.models.weights import expand
from workbench.speculation.heads import Head, save_head
from workbench.speculation.heads.formats.shape import write_shape
from workbench.train.card import write_card


def export_head(
    trained: Head | DecoderLM, folder: Path, base: str, metrics: dict[str, Any]
) -> None:
    """Write a head, or a draft model, in bfloat16 with `metrics.json` and a card."""
    if isinstance(trained, DecoderLM):
        save_draft_model(trained, folder, torch.bfloat16)
    else:
        save_head(trained, folder, base=base, dtype=torch.bfloat16)
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    write_card(folder, metrics | {"base": base, "bytes": num_bytes}, head_card)


def save_draft_model(model: DecoderLM, folder: Path, dtype: torch.dtype) -> None:
    """Write a Llama of ours in the Hugging Face layout, with its tokenizer if it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    config, parameters = model.config, dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    parts = model.weight_parts(config)
    pieces = expand(model.weight_rules, parts, shapes, config.num_layers)
    tensors = {
        piece.source: parameters[piece.target].detach()[piece.rows].to("cpu", dtype).clone()
        for piece in pieces
    }
    save_file(tensors, folder / WHOLE, metadata={"format": "pt"})
    stated = write_shape(config) | {
        "architectures": [config.architecture],
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids) or None,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    text = json.dumps(stated, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    if model.tokenizer is not None:
        model.tokenizer.hf.save_pretrained(str(folder))


def head_card(metrics: dict[str, Any]) -> str:
    """Return the card of a head, made from its recorded figures alone."""
    rows = "\n".join(
        f"| {name} | {result['length']:.2f} | {_shares(result['accepted'])} |"
        for name, result in metrics["acceptance"].items()
    )
    measured = ""
    if rows:
        measured = f"""{metrics["num_prompts"]} prompts that neither model was trained on, up to
{metrics["max_tokens"]} tokens each. The acceptance length is what a verification pass commits on
average, the bonus token counted.

| draft | acceptance length | accepted at each depth |
|---|---:|---|
{rows}

"""
    last = metrics["log"][-1]
    return f"""# {metrics["kind"]} for `{metrics["base"]}`

Drafts tokens for `{metrics["base"]}`, which verifies them: they change how fast it is, never what
it says. {metrics["num_parameters"] / 1e6:.2f} M parameters, {metrics["bytes"] / 1e6:.1f} MB.

{measured}Trained for {metrics["steps"]} steps, {last["tokens"] / 1e6:.1f} M tokens,
{last["seconds"]:.0f} s on {metrics["device"]}, by

    {metrics["command"]}

on {metrics["text"]}; final loss
{last.get("loss", float("nan")):.3f}. Everything recorded is in `metrics.json`. Licence: Apache-2.0,
as the base model's.
"""


def _shares(shares: list[float]) -> str:
    return " ".join(f"{share:.2f}" for share in shares)
