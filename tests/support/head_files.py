"""Random checkpoints of draft heads, tensor by tensor under their published names.

Written by hand from the formats' descriptions, not by `save_head`, so that loading is tested
against what others write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

H, VOCAB, INNER, HEADS, KV, DIM, LAYERS = 32, 61, 48, 4, 2, 8, 8
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": H,
    "vocab_size": VOCAB,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": DIM,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "max_position_embeddings": 64,
}
MTP_NAMES: dict[str, dict[str, Any]] = {
    "deepseek": {
        "token_norm": f"model.layers.{LAYERS}.enorm.weight",
        "state_norm": f"model.layers.{LAYERS}.hnorm.weight",
        "fc": f"model.layers.{LAYERS}.eh_proj.weight",
        "norm": f"model.layers.{LAYERS}.shared_head.norm.weight",
        "block": f"model.layers.{LAYERS}",
        "zero_first": True,
    },
    "qwen3_next": {
        "token_norm": "mtp.pre_fc_norm_embedding.weight",
        "state_norm": "mtp.pre_fc_norm_hidden.weight",
        "fc": "mtp.fc.weight",
        "norm": "mtp.norm.weight",
        "block": "mtp.layers.0",
        "zero_first": False,
    },
    "speculators": {
        "token_norm": "mtp_layers.0.token_layernorm.weight",
        "state_norm": "mtp_layers.0.hidden_layernorm.weight",
        "fc": "mtp_layers.0.input_proj.weight",
        "norm": "mtp_layers.0.final_layernorm.weight",
        "block": "mtp_layers.0",
        "zero_first": False,
    },
}


def matrix(*shape: int) -> Tensor:
    """A random matrix under which activations keep their size."""
    return torch.randn(*shape) * (1.2 / shape[-1] ** 0.5)


def norm(size: int = H) -> Tensor:
    """A norm's weight that is not 1."""
    return 1 + 0.3 * torch.randn(size)


def block(name: str, *, width: int = H, input_norm: bool = True, qk: bool = False) -> dict:
    """A decoder layer's tensors."""
    tensors = {
        f"{name}.self_attn.q_proj.weight": matrix(HEADS * DIM, width),
        f"{name}.self_attn.k_proj.weight": matrix(KV * DIM, width),
        f"{name}.self_attn.v_proj.weight": matrix(KV * DIM, width),
        f"{name}.self_attn.o_proj.weight": matrix(H, HEADS * DIM),
        f"{name}.mlp.gate_proj.weight": matrix(INNER, H),
        f"{name}.mlp.up_proj.weight": matrix(INNER, H),
        f"{name}.mlp.down_proj.weight": matrix(H, INNER),
        f"{name}.post_attention_layernorm.weight": norm(),
    }
    if input_norm:
        tensors[f"{name}.input_layernorm.weight"] = norm()
    if qk:
        tensors |= {f"{name}.self_attn.{part}_norm.weight": norm(DIM) for part in "qk"}
    return tensors


def medusa(num_heads: int = 3, num_layers: int = 1, *, aliased: bool = True) -> dict:
    """Medusa's tensors; with several layers, one block under each index, as the authors write."""
    tensors = {}
    for i in range(num_heads):
        for j in range(num_layers):
            if j == 0 or not aliased:
                weight, bias = matrix(H, H), torch.randn(H) * 0.3
            tensors[f"{i}.{j}.linear.weight"] = weight.clone()
            tensors[f"{i}.{j}.linear.bias"] = bias.clone()
        tensors[f"{i}.{num_layers}.weight"] = matrix(VOCAB, H)
    return tensors


def hydra(num_heads: int = 3, num_layers: int = 2, *, prefix: bool = False) -> dict:
    """Hydra's tensors; dropout takes the even places of each Sequential."""
    tensors = {}
    for i in range(num_heads):
        width = (i + 2) * H
        for kind in ("linear", "res_connection"):
            tensors[f"hydra_mlp.{i}.1.{kind}.weight"] = matrix(H, width)
            tensors[f"hydra_mlp.{i}.1.{kind}.bias"] = torch.randn(H) * 0.3
        weight, bias = matrix(H, H), torch.randn(H) * 0.3
        for j in range(1, num_layers):
            tensors[f"hydra_mlp.{i}.{2 * j + 1}.linear.weight"] = weight.clone()
            tensors[f"hydra_mlp.{i}.{2 * j + 1}.linear.bias"] = bias.clone()
        tensors[f"hydra_lm_head.{i}.1.weight"] = matrix(VOCAB, H)
        tensors[f"hydra_lm_head.{i}.1.bias"] = torch.randn(VOCAB) * 0.3
    if prefix:
        tensors |= block("prefix_embeding_layer.layers.0")
        tensors["prefix_embeding_layer.norm.weight"] = norm()
    return tensors


def eagle(*, bias: bool = True) -> dict:
    """EAGLE-1's tensors: no input_layernorm, no final norm, no head."""
    tensors = block("layers.0", input_norm=False) | {"fc.weight": matrix(H, 2 * H)}
    return tensors | ({"fc.bias": torch.randn(H) * 0.3} if bias else {})


def eagle3(
    first: str = "midlayer", drafts: int | None = 20, flags: frozenset = frozenset()
) -> dict:
    """EAGLE-3's tensors with `drafts` tokens of the vocabulary (None: all of it)."""
    tensors = block(first, width=2 * H) | {
        f"{first}.hidden_norm.weight": norm(),
        "fc.weight": matrix(H, 3 * H),
        "norm.weight": norm(),
        "lm_head.weight": matrix(drafts or VOCAB, H),
    }
    if drafts is not None:
        ids = torch.randperm(VOCAB)[:drafts].sort().values
        t2d = torch.zeros(VOCAB, dtype=torch.bool)
        t2d[ids] = True
        tensors |= {"d2t": ids - torch.arange(drafts), "t2d": t2d}
    if "norm_before_fc" in flags:
        tensors["input_norm.weight"] = norm(3 * H)
    if "fc_norm" in flags:
        tensors |= {f"fc_norm.{i}.weight": norm() for i in range(3)}
    return tensors


def mtp(layout: str) -> dict:
    """An MTP layer's tensors in a layout, as stored."""
    names = MTP_NAMES[layout]
    tensors = block(names["block"], qk=layout != "deepseek")
    tensors |= {names[key]: norm() for key in ("token_norm", "state_norm", "norm")}
    tensors[names["fc"]] = matrix(H, 2 * H)
    if layout == "qwen3_next":  # norms are stored around 0
        tensors = {k: v - 1 if "norm" in k else v for k, v in tensors.items()}
    return tensors


def dflash(num_layers: int = 2, num_states: int = 3) -> dict:
    """DFlash's tensors."""
    tensors = {
        "fc.weight": matrix(H, num_states * H),
        "hidden_norm.weight": norm(),
        "norm.weight": norm(),
    }
    for i in range(num_layers):
        tensors |= block(f"layers.{i}", qk=True)
    return tensors


def write(folder: Path, config: dict, tensors: dict, file: str = "model.safetensors") -> Path:
    """Write a checkpoint; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file)
    return folder
