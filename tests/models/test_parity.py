"""Every family against the transformers class, in float32: logits, greedy tokens, gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.batch import ForwardContext
from workbench.models import DecoderLM, load_model
from workbench.ops import get_backend

Folder = Callable[[str], Path]
Reference = Callable[[Path], Any]

CASES = [
    "llama",
    "llama-tied",
    "llama-biases",
    "llama-gelu",
    "llama-gelu-tanh",
    "llama-head-dim",
    "llama-linear",
    "llama-dynamic",
    "llama-yarn",
    "llama-llama3",
    "mistral-window",
    "mistral-no-window",
    "mixtral",
    "mixtral-window",
    "qwen2",
    "qwen2-max-window-layers",
    "qwen2-layer-types",
]
BACKENDS = ["reference", "sdpa", "native"]
# Rising, so that transformers' dynamic frequencies, which never shrink again beyond the trained
# context of 32, are made for each of them.
LENGTHS = [1, 7, 31, 45]


def tokens_of(length: int) -> Tensor:
    """Return random token ids, the same in every run and for every case."""
    return torch.randint(0, 97, (length,), generator=torch.Generator().manual_seed(length))


def run(model: DecoderLM, rows: list[Tensor], backend: str, prompt: int | None = None) -> Tensor:
    """Return the logits [T, vocab] of whole sequences; `prompt`: its length, if continued."""
    lengths = [len(row) for row in rows]
    ctx = ForwardContext.without_cache(lengths, get_backend(backend, "cpu"))
    if prompt is not None:
        ctx.rope_lens = (ctx.positions + 1).clamp(min=prompt)
    return model.logits(model(torch.cat(rows), ctx), ctx)


@torch.inference_mode()
def greedy_with_cache(hf: Any, prompt: Tensor, steps: int) -> list[int]:
    """Return the tokens that transformers decodes one by one with its KV cache."""
    output = hf(prompt[None], use_cache=True)
    tokens = [int(output.logits[0, -1].argmax())]
    while len(tokens) < steps:
        latest = torch.tensor([[tokens[-1]]])
        output = hf(latest, past_key_values=output.past_key_values, use_cache=True)
        tokens.append(int(output.logits[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_logits_of_a_packed_batch(
    case: str, backend: str, checkpoint: Folder, reference: Reference
) -> None:
    hf, model = (
        reference(checkpoint(case)),
        load_model(checkpoint(case), device="cpu", dtype="float32"),
    )
    rows = [tokens_of(n) for n in LENGTHS]
    with torch.no_grad():
        expected = torch.cat([hf(row[None]).logits[0] for row in rows])
        torch.testing.assert_close(run(model, rows, backend), expected, rtol=1e-4, atol=1e-5)


# 40 lies beyond the trained context; from 12 the sequence grows beyond it.
@pytest.mark.parametrize("prompt_length", [12, 40])
@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens(
    case: str, prompt_length: int, checkpoint: Folder, reference: Reference
) -> None:
    hf, model = (
        reference(checkpoint(case)),
        load_model(checkpoint(case), device="cpu", dtype="float32"),
    )
    prompt = tokens_of(prompt_length)
    expected = greedy_with_cache(hf, prompt, 40)
    tokens = prompt
    with torch.inference_mode():
        for _ in range(40):
            logits = run(model, [tokens], "reference", prompt=prompt_length)
            tokens = torch.cat([tokens, logits[-1].argmax()[None]])
    assert tokens[prompt_length:].tolist() == expected
    assert len(set(expected)) > 2, "a constant tail would prove little"


@pytest.mark.parametrize("backend", ["reference", "sdpa"])  # native refuses them
@pytest.mark.parametrize("case", ["llama-biases", "mistral-window", "qwen2"])
def test_gradients(case: str, backend: str, checkpoint: Folder, reference: Reference) -> None:
    hf, model = (
        reference(checkpoint(case)),
        load_model(checkpoint(case), device="cpu", dtype="float32"),
    )
    model.requires_grad_(True)
    rows = [tokens_of(n) for n in (5, 20)]
    run(model, rows, backend).logsumexp(-1).sum().backward()
    sum(hf(row[None]).logits.logsumexp(-1).sum() for row in rows).backward()
    pairs = {
        "embedding.weight": ["model.embed_tokens.weight"],
        "layers.0.attention.qkv_proj.weight": [
            f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"
        ],
        "layers.1.mlp.gate_up_proj.weight": [
            f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up")
        ],
        "layers.2.mlp_norm.weight": ["model.layers.2.post_attention_layernorm.weight"],
    }
    for ours, theirs in pairs.items():
        expected = torch.cat([hf.get_parameter(name).grad for name in theirs])
        actual = model.get_parameter(ours).grad
        atol = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=atol)


def test_dynamic_scaling_refuses_to_guess_beside_a_cache(checkpoint: Folder) -> None:
    model = load_model(checkpoint("llama-dynamic"), device="cpu", dtype="float32")
    assert model.needs_rope_lens
    ctx = ForwardContext.without_cache([4], get_backend("reference", "cpu"))
    ctx.kv = []
    with pytest.raises(ValueError, match=r"ForwardContext\.rope_lens"):
        model(torch.arange(4), ctx)


def test_only_dynamic_scaling_needs_lengths(checkpoint: Folder) -> None:
    for case in ("llama", "llama-yarn", "llama-llama3", "llama-linear"):
        model = load_model(checkpoint(case), device="cpu", dtype="float32")
        assert not model.needs_rope_lens
        assert model.rope_scope(1000) is None


def test_prompts_share_blocks_only_where_their_rotations_agree(checkpoint: Folder) -> None:
    model = load_model(checkpoint("llama-dynamic"), device="cpu", dtype="float32")
    assert model.rope_scope(3) == model.rope_scope(32) is None  # 32 is the trained context
    assert model.rope_scope(33) != model.rope_scope(34)
