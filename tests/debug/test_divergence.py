"""The first divergence: none between equal models, and every planted bug by its name."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny import random_prompts

from workbench.debug import LAYER_OPS, Point, first_divergence
from workbench.errors import ConfigError, RequestError
from workbench.layers import RotaryEmbedding
from workbench.models import DecoderLM
from workbench.ops import ReferenceBackend

FAMILIES = ["llama", "mistral", "qwen2", "qwen2-windows"]
TOKENS = [5 + 7 * i % 300 for i in range(20)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["reference", "sdpa", "native"])
def test_equal_models_do_not_diverge(pair: Any, family: str, backend: str) -> None:
    model, peer = pair(family, "sdpa")
    result = first_divergence(model, peer, TOKENS, backend=backend)
    assert not result
    assert (result.layer, result.op, result.first) == (None, None, None)
    layers = model.config.num_layers
    names = [str(comparison.point) for comparison in result.comparisons]
    expected = [f"layers.{i}.{op}" for i, op in itertools.product(range(layers), LAYER_OPS)]
    assert names == ["embedding", *expected, "norm", "head"], "every operation is compared"
    assert result.skipped == ()
    assert max(comparison.max_rel for comparison in result.comparisons) < 1e-4
    assert "No divergence" in result._repr_html_()


Plant = Callable[[DecoderLM], None]


def _on_layer(number: int, change: Callable[[Any], None]) -> Plant:
    return lambda model: change(model.layers[number])  # type: ignore[index]


def _theta(layer: Any) -> None:
    """Another rotary base in one layer."""
    config = layer_config(layer)
    rope, forward = RotaryEmbedding(replace(config, rope_theta=9000.0)), layer.attention.forward
    layer.attention.forward = lambda x, _, ctx: forward(x, rope(ctx.positions), ctx)


def layer_config(layer: Any) -> Any:
    """Return a config with what a rotary embedding wants to know of this layer."""
    from workbench.config import ModelConfig

    attention = layer.attention
    sizes = 8, 8, 8, 1, attention.num_heads, attention.num_kv_heads, attention.head_dim
    return ModelConfig("none", *sizes, context=256)


def _transposed(layer: Any) -> None:
    layer.attention.o_proj.weight.data = layer.attention.o_proj.weight.data.T.contiguous()


def _epsilon(layer: Any) -> None:
    layer.mlp_norm.eps = 1e-2


def _first_epsilon(layer: Any) -> None:
    layer.attention_norm.eps = 1e-2


def _window(layer: Any) -> None:
    layer.attention.window -= 1


def _scale(layer: Any) -> None:
    layer.attention.scale *= 1.05


def _bias(layer: Any) -> None:
    part = layer.attention.qkv_proj.bias.data
    keys = layer.attention.num_heads * layer.attention.head_dim
    part[keys : keys + 8] = 0.0


def _value_rows(layer: Any) -> None:
    layer.attention.qkv_proj.weight.data[-1] *= 2


def _swapped(layer: Any) -> None:
    gate_up = layer.mlp.gate_up_proj.weight.data
    gate_up.copy_(torch.cat(gate_up.chunk(2)[::-1]))


def _up(layer: Any) -> None:
    layer.mlp.gate_up_proj.weight.data[-1] += 0.3


def _down(layer: Any) -> None:
    layer.mlp.down_proj.weight.data[0, 0] += 1.0


def _activation(layer: Any) -> None:
    """gelu in place of silu."""
    forward = layer.mlp.forward

    class Gelu(ReferenceBackend):
        def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
            gate, up = gate_up.chunk(2, -1)
            return F.gelu(gate) * up

    def with_gelu(x: torch.Tensor, ctx: Any) -> torch.Tensor:
        return forward(x, replace(ctx, backend=Gelu(x.device)))

    layer.mlp.forward = with_gelu


def _lost_residual(layer: Any) -> None:
    """The stream after attention without what came before."""
    forward = layer.mlp_norm.forward
    layer.mlp_norm.forward = lambda x, residual, ctx: forward(x, 0.5 * residual, ctx)


def _doubled_stream(layer: Any) -> None:
    forward = layer.forward
    layer.forward = lambda *args: tuple(part * 1.5 for part in forward(*args))


def _embedding(model: Any) -> None:
    model.embedding.weight.data[[5, 6]] = model.embedding.weight.data[[6, 5]]


def _norm(model: Any) -> None:
    model.norm.weight.data[3] *= 1.5


def _head(model: Any) -> None:
    model.head.weight.data[17] += 0.2


BUGS: dict[str, tuple[str, Plant, Point, int]] = {
    "rope theta": ("llama", _on_layer(1, _theta), Point(1, "q_rope"), 1),
    "transposed weight": ("llama", _on_layer(0, _transposed), Point(0, "o_proj"), 0),
    "norm epsilon": ("llama", _on_layer(1, _epsilon), Point(1, "mlp_norm"), 0),
    "first norm's epsilon": ("llama", _on_layer(0, _first_epsilon), Point(0, "attention_norm"), 0),
    "window off by one": ("mistral", _on_layer(1, _window), Point(1, "attention"), 7),
    "window of one layer": ("qwen2-windows", _on_layer(2, _window), Point(2, "attention"), 7),
    "attention scale": ("llama", _on_layer(1, _scale), Point(1, "attention"), 1),
    "lost bias": ("qwen2", _on_layer(1, _bias), Point(1, "k_proj"), 0),
    "value rows": ("llama", _on_layer(0, _value_rows), Point(0, "v_proj"), 0),
    "gate and up swapped": ("llama", _on_layer(1, _swapped), Point(1, "gate_proj"), 0),
    "up": ("llama", _on_layer(0, _up), Point(0, "up_proj"), 0),
    "down": ("llama", _on_layer(1, _down), Point(1, "down_proj"), 0),
    "gelu": ("llama", _on_layer(1, _activation), Point(1, "activation"), 0),
    "lost residual": ("llama", _on_layer(1, _lost_residual), Point(1, "attention_residual"), 0),
    "stream": ("llama", _on_layer(0, _doubled_stream), Point(0, "mlp_residual"), 0),
    "embedding": ("llama", _embedding, Point(None, "embedding"), 0),
    "final norm": ("llama", _norm, Point(None, "norm"), 0),
    "head": ("llama", _head, Point(None, "head"), 0),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found_by_name(pair: Any, name: str) -> None:
    family, plant, expected, position = BUGS[name]
    model, peer = pair(family)
    plant(model)
    result = first_divergence(model, peer, TOKENS)
    assert result
    assert (result.layer, result.op) == expected
    assert result.first is not None
    assert result.first.position == position
    assert result.first.max_abs > 0
    assert 0 < abs(result.first.ours - result.first.theirs) <= result.first.max_abs * (1 + 1e-6)
    assert str(expected) in result._repr_html_()


def test_two_of_our_models_and_two_backends(pair: Any) -> None:
    model, _ = pair()
    other, _ = pair()
    assert not first_divergence(model, other, TOKENS)
    assert not first_divergence(model, model, TOKENS, backend="native", reference_backend="sdpa")
    _scale(other.layers[0])
    result = first_divergence(model, other, TOKENS)
    assert (result.layer, result.op) == (0, "attention")


def test_a_single_head_and_token_are_named(pair: Any) -> None:
    model, peer = pair()
    attention = model.layers[1].attention
    row = attention.num_heads * attention.head_dim + attention.head_dim  # key head 1, channel 0
    attention.qkv_proj.weight.data[row] += 0.5
    first = first_divergence(model, peer, TOKENS).first
    assert first is not None
    assert (str(first.point), first.worst[1:]) == ("layers.1.k_proj", (1, 0))


def test_what_is_not_a_number_diverges(pair: Any) -> None:
    model, peer = pair()
    model.layers[1].mlp.down_proj.weight.data[3, 0] = torch.nan
    result = first_divergence(model, peer, TOKENS)
    assert (result.layer, result.op) == (1, "down_proj")
    assert result.first is not None
    assert result.first.position == 0


def test_a_lower_precision_is_no_bug(pair: Any) -> None:
    model, peer = pair()
    halved = model.to(torch.bfloat16)
    assert not first_divergence(halved, peer, TOKENS)
    assert first_divergence(halved, peer, TOKENS, tolerance=1e-4).op == "embedding"


def test_the_models_leave_it_as_they_came(pair: Any) -> None:
    model, peer = pair()
    first_divergence(model, peer, TOKENS)
    for one in (model, peer):
        for module in one.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks


def test_a_text_and_bad_input(pair: Any) -> None:
    model, peer = pair()
    assert not first_divergence(model, peer, "def fibonacci(n):")
    for bad, what in (([], "0 tokens"), ([1] * 300, "300 tokens"), ([1, 999], "999")):
        with pytest.raises(RequestError, match=what):
            first_divergence(model, peer, bad)
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 320, "n_positions": 64}
    foreign = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
    with pytest.raises(ConfigError, match=r"has no module 'model\.embed_tokens'"):
        first_divergence(model, foreign, TOKENS)
    narrow, _ = pair("qwen2-windows")
    narrow.embedding.weight = torch.nn.Parameter(torch.zeros(320, 32))
    narrow.layers = torch.nn.ModuleList()
    narrow.norm.weight = torch.nn.Parameter(torch.ones(32))
    narrow.head.weight = torch.nn.Parameter(torch.zeros(320, 32))
    with pytest.raises(ConfigError, match="differ in shape"):
        first_divergence(model, narrow, random_prompts(1, 2)[0])
