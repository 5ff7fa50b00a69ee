"""Rotation, norms and the gated activation against transformers and their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from workbench.batch import Backend


def noise(*shape: int, device: str, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 2, 16), (3, 3, 6), (8, 1, 64), (1, 1, 4)]
)
def test_rope(backend: Backend, device: str, heads: int, kv_heads: int, dim: int) -> None:
    tokens = 11
    q = noise(tokens, heads, dim, device=device)
    k = noise(tokens, kv_heads, dim, device=device, seed=1)
    angles = noise(tokens, dim // 2, device=device, seed=2) * 3
    doubled = torch.cat((angles, angles), dim=-1)[None]  # transformers repeats them for both halves
    expected = apply_rotary_pos_emb(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], doubled.cos(), doubled.sin()
    )
    for actual, wanted in zip(
        backend.rope(q, k, angles.cos(), angles.sin()), expected, strict=True
    ):
        torch.testing.assert_close(actual, wanted[0].transpose(0, 1), rtol=1e-5, atol=1e-6)


def test_rope_keeps_lengths_and_only_differences_count(backend: Backend, device: str) -> None:
    dim = 32
    x = noise(1, 1, dim, device=device).expand(40, 1, dim)
    frequencies = 1.0 / 100 ** (torch.arange(0, dim, 2, device=device) / dim)
    angles = torch.arange(40, device=device)[:, None] * frequencies
    q, k = backend.rope(x, x, angles.cos(), angles.sin())
    torch.testing.assert_close(q.norm(dim=-1), x.norm(dim=-1))
    dots = (q[:, 0] @ k[:, 0].T).cpu()
    for distance in range(5):
        diagonal = dots.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rope_keeps_the_dtype(backend: Backend, device: str, dtype: torch.dtype) -> None:
    q = noise(5, 2, 8, device=device).to(dtype)
    angles = noise(5, 4, device=device, seed=1)
    rotated = backend.rope(q, q, angles.cos(), angles.sin())
    assert [side.dtype for side in rotated] == [dtype, dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 7, 64, 130])
def test_rms_norm(backend: Backend, device: str, dtype: torch.dtype, width: int) -> None:
    x = (noise(9, width, device=device) * 5).to(dtype)
    norm = LlamaRMSNorm(width, eps=1e-3).to(device, dtype)
    with torch.no_grad():
        norm.weight.copy_(noise(width, device=device, seed=1))
        expected = norm(x)
    actual = backend.rms_norm(x, norm.weight.detach(), 1e-3)
    assert actual.dtype == dtype
    # torch's fused form rounds once where transformers rounds twice.
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_rms_norm_counts_eps_and_survives_large_halves(backend: Backend, device: str) -> None:
    weight = torch.ones(4, device=device)
    tiny = backend.rms_norm(torch.full((1, 4), 1e-3, device=device), weight, 1.0)
    torch.testing.assert_close(tiny, torch.full_like(tiny, 1e-3), rtol=1e-4, atol=0)
    large = torch.full((1, 4), 6e4, device=device, dtype=torch.float16)  # its square overflows
    torch.testing.assert_close(
        backend.rms_norm(large, weight.half(), 1e-6), torch.ones_like(large), rtol=1e-3, atol=0
    )


def test_add_rms_norm(backend: Backend, device: str) -> None:
    x, residual = noise(6, 10, device=device), noise(6, 10, device=device, seed=1)
    weight = noise(10, device=device, seed=2)
    before = x.clone(), residual.clone()
    normed, total = backend.add_rms_norm(x, residual, weight, 1e-5)
    torch.testing.assert_close(total, x + residual, rtol=0, atol=0)
    expected = (x + residual) * (x + residual).pow(2).mean(-1, keepdim=True).add(1e-5).rsqrt()
    torch.testing.assert_close(normed, expected * weight, rtol=1e-5, atol=1e-6)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


@pytest.mark.parametrize("width", [1, 7, 64, 130])
@pytest.mark.parametrize("biased", [True, False])
def test_layer_norm(backend: Backend, device: str, width: int, biased: bool) -> None:
    x, residual = noise(9, width, device=device) * 5 + 2, noise(9, width, device=device, seed=1)
    weight = noise(width, device=device, seed=2)
    bias = noise(width, device=device, seed=3) if biased else None
    wide = (x + residual).double()
    centred = wide - wide.mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    expected = (expected if bias is None else expected + bias.double()).float()
    normed, total = backend.add_layer_norm(x, residual, weight, bias, 1e-5)
    torch.testing.assert_close(normed, expected, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(total, x + residual, rtol=0, atol=0)
    alone = backend.layer_norm(x + residual, weight, bias, 1e-5)
    torch.testing.assert_close(alone, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("tanh", [True, False])
def test_gelu_mul(backend: Backend, device: str, tanh: bool) -> None:
    gate, up = noise(5, 7, device=device) * 2, noise(5, 7, device=device, seed=1)
    if tanh:
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        active = gate / 2 * (1 + inner.tanh())
    else:
        active = gate / 2 * (1 + (gate / math.sqrt(2)).erf())
    actual = backend.gelu_mul(torch.cat((gate, up), dim=-1), tanh=tanh)
    torch.testing.assert_close(actual, active * up, rtol=1e-5, atol=1e-6)


def test_silu_mul(backend: Backend, device: str) -> None:
    gate, up = noise(5, 7, device=device), noise(5, 7, device=device, seed=1)
    actual = backend.silu_mul(torch.cat((gate, up), dim=-1))
    torch.testing.assert_close(actual, gate / (1 + (-gate).exp()) * up, rtol=1e-5, atol=1e-6)
