"""transformers' side of a comparison: the model of a folder, and what it computes for a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor


def reference(folder: Path, device: str = "cpu") -> Any:
    """Return transformers' model of a folder in float32."""
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval().to(device)


@torch.inference_mode()
def logprobs(hf: Any, ids: list[int]) -> Tensor:
    """Return the log-probabilities after each token, [tokens, vocab]."""
    rows = hf(torch.tensor([ids], device=hf.device)).logits[0]
    return rows.float().log_softmax(-1).cpu()


@torch.inference_mode()
def hidden_states(hf: Any, ids: list[int]) -> Tensor:
    """Return the hidden states after the final norm, [tokens, hidden]."""
    out = hf(torch.tensor([ids], device=hf.device), output_hidden_states=True)
    return out.hidden_states[-1][0].cpu()


@torch.inference_mode()
def outputs_of(hf: Any, ids: list[int], modules: list[str]) -> dict[str, Tensor]:
    """Return what modules under `hf.model` give out, [tokens, size] each."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            found[name] = tensor.reshape(len(ids), -1).cpu()

        return hook

    handles = [hf.model.get_submodule(m).register_forward_hook(keep(m)) for m in modules]
    try:
        hf(torch.tensor([ids], device=hf.device))
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.inference_mode()
def generate_from(hf: Any, embeds: Tensor, max_tokens: int) -> list[int]:
    """Return the greedy tokens that follow embeddings [tokens, hidden]."""
    rows = embeds[None].to(hf.device)
    out = hf.generate(
        inputs_embeds=rows,
        attention_mask=torch.ones(rows.shape[:2], dtype=torch.int64, device=hf.device),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0].tolist()
