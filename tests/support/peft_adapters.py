"""LoRA adapters for tests: made by the installed PEFT, loud enough to change tokens."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from hf import reference

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# name -> what PEFT's LoraConfig is given beside seed and rank.
CONFIGS: dict[str, dict[str, Any]] = {
    "all linear": {"target_modules": "all-linear", "r": 4},
    "list": {"target_modules": ["q_proj", "v_proj"], "r": 3, "lora_alpha": 5},
    "regex": {"target_modules": r".*layers\.[01]\.(mlp\.(up|down)_proj|self_attn\.o_proj)", "r": 2},
    "rslora": {"target_modules": LINEAR, "r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "target_modules": LINEAR,
        "r": 4,
        "rank_pattern": {"q_proj": 7, r"layers\.1\.mlp\.up_proj": 2},
        "alpha_pattern": {"down_proj": 11, r"model\.layers\.0\.self_attn\.k_proj": 1},
    },
    "layers": {"target_modules": LINEAR, "r": 2, "layers_to_transform": [1]},
    "layers, pattern": {
        "target_modules": ["q_proj", "up_proj"],
        "layers_to_transform": 0,
        "layers_pattern": "layers",
    },
    "excluded": {"target_modules": LINEAR, "exclude_modules": ["q_proj"], "r": 2},
    "head": {"target_modules": ["lm_head", "q_proj"], "r": 3},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"], "r": 3},
    "lora_bias": {"target_modules": ["q_proj", "down_proj"], "r": 2, "lora_bias": True},
    "dora": {"target_modules": "all-linear", "r": 4, "use_dora": True, "lora_alpha": 6},
    "dora, some": {
        "target_modules": ["q_proj", "v_proj", "down_proj", "lm_head", "embed_tokens"],
        "r": 3,
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"down_proj": 5},
    },
    "saved head": {"target_modules": ["q_proj"], "r": 2, "modules_to_save": ["lm_head"]},
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "r": 2},
}


def peft_model(folder: Path, seed: int, **settings: Any) -> Any:
    """Return PEFT's model over a checkpoint, with random adapter weights."""
    import peft

    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(reference(folder), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            trained = "lora_" in name or "modules_to_save" in name or parameter.requires_grad
            if "magnitude" in name:  # as long as before, each by another factor
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
            elif trained:
                noise = torch.randn(parameter.shape, generator=generator)
                whole = "modules_to_save" in name
                embeds = "embed_tokens" in name
                parameter.copy_((0.03 if whole and embeds else 0.15) * noise)
    return model.eval()


def write_adapter(folder: Path, base: Path, seed: int = 0, **settings: Any) -> Path:
    """Have PEFT write an adapter over the checkpoint in `base`; return its folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model(base, seed, **settings).save_pretrained(folder)
    return folder
