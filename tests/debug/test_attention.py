"""Attention weights: transformers' own, for prompts and for requests that run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from workbench.cache import KVCache
from workbench.debug import attention_weights
from workbench.engine import Engine
from workbench.errors import RequestError, UnknownRequest
from workbench.run import Runner
from workbench.sampling_params import SamplingParams
from workbench.scheduler import Scheduler

TOKENS = [5 + 7 * i % 300 for i in range(20)]


@torch.no_grad()
def of_transformers(peer: Any, tokens: list[int]) -> torch.Tensor:
    """Return [layers, heads, T, T]."""
    return torch.cat(peer(torch.tensor([tokens]), output_attentions=True).attentions)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen2-windows"])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_they_are_those_of_transformers(pair: Any, family: str, backend: str) -> None:
    model, peer = pair(family)
    got = attention_weights(model, TOKENS, backend=backend)
    torch.testing.assert_close(got.weights, of_transformers(peer, TOKENS), rtol=1e-4, atol=1e-6)
    ones = torch.ones(got.weights.shape[:-1])
    torch.testing.assert_close(got.weights.sum(-1), ones)


def test_chosen_layers_and_heads(pair: Any) -> None:
    model, peer = pair()
    whole = of_transformers(peer, TOKENS)
    got = attention_weights(model, TOKENS, layers=[1], heads=[3, 0])
    torch.testing.assert_close(got.weights, whole[[1]][:, [3, 0]], rtol=1e-4, atol=1e-6)
    assert torch.equal(got.of(1, 0), got.weights[0, 1])
    layer, head, position, weight = got.strongest(12)[0]
    assert weight == got.weights[:, :, 12].max() == got.of(layer, head)[12, position]
    assert "".join(got.tokens) == model.tokenizer.decode(TOKENS)
    assert repr(got) == "AttentionWeights(layers=(1,), heads=(3, 0), tokens=20)"


def make_engine(model: Any) -> Engine:
    cache = KVCache.for_model(model, 64, 4)
    return Engine(model, cache, Scheduler(cache), Runner(model, cache))


def test_of_a_request_that_runs(pair: Any) -> None:
    model, peer = pair()
    params = SamplingParams(max_tokens=12, temperature=0.9, seed=3, ignore_eos=True)
    with make_engine(model) as undisturbed:
        [expected] = undisturbed.generate([TOKENS], params)
    with make_engine(model) as engine:
        name = engine.add(TOKENS, params)
        engine.run(4)
        used = engine.cache.blocks.num_used
        got = attention_weights(engine, name, layers=[0], heads=[1])
        tokens = [*TOKENS, *engine.output(name).outputs[0].token_ids]
        assert list(got.token_ids) == tokens
        want = of_transformers(peer, tokens)[:1, 1:2]
        torch.testing.assert_close(got.weights, want, rtol=1e-4, atol=1e-6)
        assert engine.cache.blocks.num_used == used, "it looks, and takes nothing"
        engine.run()
        assert engine.output(name).outputs[0].token_ids == expected.outputs[0].token_ids


def test_bad_input(pair: Any) -> None:
    model, _ = pair()
    for settings, field in (({"layers": [2]}, "layers"), ({"heads": [-1]}, "heads")):
        with pytest.raises(RequestError, match=field):
            attention_weights(model, TOKENS, **settings)
    with make_engine(model) as engine:
        with pytest.raises(RequestError, match="no request's id"):
            attention_weights(engine, TOKENS)
        with pytest.raises(UnknownRequest):
            attention_weights(engine, "nobody")
        name = engine.add([1, torch.zeros(1, 64), 2], SamplingParams(max_tokens=2))
        with pytest.raises(RequestError, match="brings embeddings"):
            attention_weights(engine, name)
        name = engine.add([1, 2], SamplingParams(max_tokens=2))
        with pytest.raises(RequestError, match="branch"):
            attention_weights(engine, name, branch=1)
