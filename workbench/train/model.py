"""The embedded model's architecture, and its forward pass over whole windows.

Called by the trainer and the evaluation. The model is transformers' `LlamaForCausalLM`; here is
only its shape, its initialisation and a forward without the mask building that generation needs.
"""

from __future__ import annotations

import math

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.data.tokenizer_training import BOS, EOS, PAD, SPECIAL_TOKENS


def tinypy_config(
    vocab_size: int = 4096,
    hidden_size: int = 512,
    num_layers: int = 8,
    num_heads: int = 8,
    num_kv_heads: int = 2,
    intermediate_size: int = 1280,
    context: int = 2048,
) -> LlamaConfig:
    """The configuration of the embedded model; smaller ones are for tests."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(EOS),
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        attn_implementation="sdpa",
    )


def new_model(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A freshly initialised float32 model; the same seed gives the same weights."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    scale = 1 / math.sqrt(2 * config.num_hidden_layers)
    with torch.no_grad():
        for layer in model.model.layers:  # what is added to the residual stream starts small
            layer.self_attn.o_proj.weight.mul_(scale)
            layer.mlp.down_proj.weight.mul_(scale)
    return model


def cast_parameters(model: LlamaForCausalLM, dtype: torch.dtype) -> None:
    """Change the parameters' type in place, and leave the rotary frequencies in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def window_hidden(model: LlamaForCausalLM, input_ids: torch.Tensor) -> torch.Tensor:
    """What the head reads `[windows, tokens, hidden]`, for windows `[windows, tokens]` from 0 on.

    Runs the model's own modules with no mask at all, which is what lets attention take its causal
    kernel while a compiler traces it. Padding may stand behind a text, where nothing looks.
    """
    body = model.model
    hidden = body.embed_tokens(input_ids)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    rotary = body.rotary_emb(hidden, positions)
    for layer in body.layers:
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotary)
    normed: torch.Tensor = body.norm(hidden)
    return normed


def window_logits(model: LlamaForCausalLM, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits `[windows, tokens, vocab]` for unpadded windows `[windows, tokens]` from 0 on."""
    logits: torch.Tensor = model.lm_head(window_hidden(model, input_ids))
    return logits


def window_loss(
    model: LlamaForCausalLM, input_ids: torch.Tensor, target_ids: torch.Tensor
) -> torch.Tensor:
    """Mean cross entropy in nats of `target_ids` `[windows, tokens]`, computed in float32."""
    logits = window_logits(model, input_ids)
    return torch.nn.functional.cross_entropy(
        logits.view(-1, logits.shape[-1]).float(), target_ids.reshape(-1)
    )
