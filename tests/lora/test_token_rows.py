"""Trained rows of embeddings and heads, as PEFT trains and stores them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drive import greedy
from peft_adapters import peft_model, write_adapter
from tiny import random_prompts

from workbench.batch import ForwardContext
from workbench.engine import Engine
from workbench.errors import AdapterError
from workbench.lora import merge, read_adapter
from workbench.models import DecoderLM
from workbench.ops import get_backend

CONFIGS: dict[str, dict[str, Any]] = {
    "list": {"trainable_token_indices": [7, 3, 11]},
    "embedding and head": {"trainable_token_indices": {"embed_tokens": [5], "lm_head": [9, 2]}},
    "rslora": {"trainable_token_indices": [1, 2], "use_rslora": True, "lora_alpha": 5},
}
CASES = [("llama", name) for name in CONFIGS] + [("qwen2", "list")]  # the latter's head is tied


def logits_of(model: DecoderLM, prompts: list[list[int]]) -> torch.Tensor:
    ctx = ForwardContext.without_cache([len(p) for p in prompts], get_backend("reference"))
    with torch.inference_mode():
        return model.logits(model(torch.tensor([i for p in prompts for i in p]), ctx), ctx)


def settings(name: str) -> dict[str, Any]:
    return {"target_modules": ["q_proj"], "r": 2, **CONFIGS[name]}


@pytest.mark.parametrize(("family", "name"), CASES)
def test_they_compute_what_peft_does(
    checkpoint: Callable[..., Path],
    model_of: Callable[..., DecoderLM],
    make_engine: Callable[..., Engine],
    tmp_path: Path,
    family: str,
    name: str,
) -> None:
    """Merged, exported and read again, and in a batch beside the base."""
    model = model_of(family)
    prompts = [[*prompt, 7, 3, 5, 1] for prompt in random_prompts(3, 1)]
    folder = write_adapter(tmp_path / "a", checkpoint(family), 3, **settings(name))
    peft = peft_model(checkpoint(family), 3, **settings(name))
    with torch.inference_mode():
        theirs = torch.cat([peft(torch.tensor([p])).logits[0] for p in prompts])
    adapter = read_adapter(folder, model)
    base = logits_of(model, prompts)
    undo = merge(model, adapter)
    ours, merged = logits_of(model, prompts), make_engine(family, prefix_reuse=False)
    expected = [merged.generate([p], greedy(8))[0].outputs[0].token_ids for p in prompts]
    undo()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=3e-5)
    assert (base - theirs).abs().max() > 1e-2
    again = read_adapter(adapter.to_peft(tmp_path / "out"), model)
    assert again.digest == adapter.digest
    engine = make_engine(family)
    engine.loras.load("a", folder)
    outputs = engine.generate([*prompts, prompts[0]], greedy(8), lora=["a", "a", "a", None])
    found = [output.outputs[0].token_ids for output in outputs]
    assert found[:3] == expected
    assert found[3] == engine.generate([prompts[0]], greedy(8))[0].outputs[0].token_ids


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trainable_token_indices": [1]}, r"has shape \[3, 64\], config and model: 1 rows of 64"),
        ({"trainable_token_indices": [1, 2, 999]}, "3 rows of 64 below 320"),
        ({"trainable_token_indices": {"lm_head": [1]}}, "the config names no such rows"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens is adapted or stored whole as well"),
        ({"use_dora": True}, "goes with no use_dora here"),
    ],
)
def test_what_does_not_fit(
    checkpoint: Callable[..., Path],
    model: DecoderLM,
    tmp_path: Path,
    changes: dict[str, Any],
    says: str,
) -> None:
    folder = write_adapter(tmp_path / "a", checkpoint(), 3, **settings("list"))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(AdapterError, match=says):
        read_adapter(folder, model)
