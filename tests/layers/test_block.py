"""The layers by themselves: what each computes, written out again from its definition."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.layers import (
    Attention,
    DecoderLayer,
    GatedMLP,
    LayerNorm,
    Linear,
    RMSNorm,
    RotaryEmbedding,
)
from workbench.models import LlamaForCausalLM
from workbench.ops import get_backend


def context(lengths: list[int]) -> ForwardContext:
    """Return a context without cache on the reference backend."""
    return ForwardContext.without_cache(lengths, get_backend("reference", "cpu"))


def layer_of(config: ModelConfig) -> DecoderLayer:
    """Return a decoder layer with weights."""
    model = LlamaForCausalLM(config)
    model.init_weights(std=0.2)
    return model.layers[1]


def test_norm_adds_the_residual_first() -> None:
    norm, ctx = RMSNorm(32, 1e-5), context([3])
    norm.weight.data.normal_()
    x, residual = torch.randn(3, 32), torch.randn(3, 32)
    total = x + residual
    expected = F.rms_norm(total, (32,), norm.weight, 1e-5)
    normed, stream = norm(x, residual, ctx)
    torch.testing.assert_close(normed, expected)
    torch.testing.assert_close(stream, total)
    normed, stream = norm(total, None, ctx)
    torch.testing.assert_close(normed, expected)
    assert stream is total


def test_layer_norm_adds_the_residual_first() -> None:
    norm, ctx = LayerNorm(32, 1e-5), context([3])
    assert norm.bias is not None
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    x, residual = torch.randn(3, 32), torch.randn(3, 32)
    expected = F.layer_norm(x + residual, (32,), norm.weight, norm.bias, 1e-5)
    normed, stream = norm(x, residual, ctx)
    torch.testing.assert_close(normed, expected)
    torch.testing.assert_close(stream, x + residual)
    torch.testing.assert_close(norm(stream, None, ctx)[0], expected)
    assert LayerNorm(32, 1e-5, bias=False).bias is None


def test_mlp() -> None:
    config = ModelConfig("none", 8, 16, 24, 1, 2, 2, 8, context=8, mlp_bias=True)
    mlp = GatedMLP(config)
    for parameter in mlp.parameters():
        parameter.data.normal_()
    x = torch.randn(5, 16)
    gate, up = F.linear(x, mlp.gate_up_proj.weight, mlp.gate_up_proj.bias).split(24, dim=-1)
    expected = F.linear(F.silu(gate) * up, mlp.down_proj.weight, mlp.down_proj.bias)
    torch.testing.assert_close(mlp(x, context([5])), expected)


def test_a_layer_is_two_residual_branches(config: ModelConfig) -> None:
    layer, ctx = layer_of(config), context([6, 3])
    rope = RotaryEmbedding(config)(ctx.positions)
    x, residual = torch.randn(9, 32), torch.randn(9, 32)
    stream = x + residual
    stream = stream + layer.attention(layer.attention_norm(stream, None, ctx)[0], rope, ctx)
    stream = stream + layer.mlp(layer.mlp_norm(stream, None, ctx)[0], ctx)
    out, kept = layer(x, residual, rope, ctx)
    torch.testing.assert_close(out + kept, stream)


def test_a_window_of_one_sees_only_itself(config: ModelConfig) -> None:
    """The values of the token itself come back, repeated for the query heads that share them."""
    attention = Attention(replace(config, windows=(1, None)), 0)
    for parameter in attention.parameters():
        parameter.data.normal_()
    ctx = context([7])
    x = torch.randn(7, 32)
    rope = RotaryEmbedding(config)(ctx.positions)
    values = attention.qkv_proj(x, ctx)[:, -16:].unflatten(-1, (2, 8)).repeat_interleave(2, dim=1)
    torch.testing.assert_close(attention(x, rope, ctx), attention.o_proj(values.flatten(1), ctx))
    whole = Attention(replace(config, windows=(1, None)), 1)
    whole.load_state_dict(attention.state_dict())
    assert not torch.allclose(whole(x, rope, ctx)[1:], attention(x, rope, ctx)[1:])


def test_rows_of_a_packed_batch_do_not_see_each_other(config: ModelConfig) -> None:
    layer = layer_of(config)
    rows = [torch.randn(n, 32) for n in (4, 1, 6)]
    together = context([4, 1, 6])
    rope = RotaryEmbedding(config)
    x, residual = layer(torch.cat(rows), None, rope(together.positions), together)
    for row, part in zip(rows, (x + residual).split([4, 1, 6]), strict=True):
        alone = context([len(row)])
        x_alone, residual_alone = layer(row, None, rope(alone.positions), alone)
        torch.testing.assert_close(part, x_alone + residual_alone)


class Doubled(torch.nn.Module):
    """A wrapper as an adapter is one: it gets the batch's context too."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        return 2 * self.inner(x, ctx)


def test_linear_layers_are_replaced_from_outside(config: ModelConfig) -> None:
    """What quantization and LoRA do: every matrix is a module of its own, reached by its name."""
    layer = layer_of(config)
    names = {name for name, module in layer.named_modules() if isinstance(module, Linear)}
    assert names == {
        "attention.qkv_proj",
        "attention.o_proj",
        "mlp.gate_up_proj",
        "mlp.down_proj",
    }
    ctx = context([2])
    x, rope = torch.randn(2, 32), RotaryEmbedding(config)(ctx.positions)
    plain, stream = layer(x, None, rope, ctx)
    layer.mlp.down_proj = Doubled(layer.mlp.down_proj)
    out, kept = layer(x, None, rope, ctx)
    torch.testing.assert_close(out, 2 * plain)
    assert torch.equal(kept, stream)
