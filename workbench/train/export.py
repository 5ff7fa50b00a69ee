"""A trained model as a folder in the Hugging Face layout.

Called by `workbench.train.base` at the end of a run. Writes sharded bfloat16 safetensors, the
tokenizer, the measured figures and the model card made from them; it measures nothing itself.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from workbench.train.card import model_card, read_metrics, write_card
from workbench.train.completion import complete

SHARD_SIZE = "15MB"


def export_model(
    model: LlamaForCausalLM, tokenizer_folder: Path, folder: Path, metrics: dict[str, Any]
) -> None:
    """Write the whole model folder; `model` must already hold the bfloat16 weights to ship.

    `metrics` holds what was recorded (see `workbench.train.base`) and is written beside the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.safetensors*"):
        stale.unlink()
    config = model.config
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_folder / name, folder / name)
    write_card(folder, metrics, model_card)


def complete_again(folder: Path) -> None:
    """Complete the card's prompts anew with the weights in `folder`; all else stays as recorded."""
    metrics = read_metrics(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    metrics["completions"] = complete(model, AutoTokenizer.from_pretrained(folder))
    write_card(folder, metrics, model_card)
