"""Probes: they read and change activations where they say, and leave no trace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.errors import ConfigError
from workbench.layers import probe
from workbench.models import DecoderLM, LlamaForCausalLM
from workbench.ops import get_backend


@pytest.fixture
def model(config: ModelConfig) -> DecoderLM:
    """A model with random weights."""
    model = LlamaForCausalLM(config)
    model.init_weights(std=0.2)
    return model.requires_grad_(False)


def run(model: DecoderLM) -> Tensor:
    """Return the logits [6, vocab] of a fixed sequence."""
    ctx = ForwardContext.without_cache([6], get_backend("reference", "cpu"))
    return model.logits(model(torch.arange(6), ctx), ctx)


def hooks(model: DecoderLM) -> int:
    """Count the hooks that are on the model."""
    return sum(len(module._forward_hooks) for module in model.modules())


def test_reading(model: DecoderLM) -> None:
    plain = run(model)
    points = ["embedding", "layers.0", "layers.1.attention", "layers.1.mlp", "norm", "head"]
    with probe(model, points) as captured:
        assert torch.equal(run(model), plain)
    assert list(captured) == points
    assert torch.equal(captured["embedding"], model.embedding.weight[:6])
    assert torch.equal(captured["head"], plain)
    torch.testing.assert_close(F.linear(captured["norm"], model.head.weight), plain)
    assert captured["layers.1.attention"].shape == captured["layers.1.mlp"].shape == (6, 32)


def test_a_layer_is_the_residual_stream_after_it(model: DecoderLM) -> None:
    with probe(model, ["layers.0", "layers.1.attention", "layers.1.mlp", "layers.1"]) as captured:
        run(model)
    branches = captured["layers.1.attention"] + captured["layers.1.mlp"]
    torch.testing.assert_close(captured["layers.0"] + branches, captured["layers.1"])


def test_changing_a_branch(model: DecoderLM) -> None:
    """Both of a layer's branches cut: the stream passes it unchanged."""
    cut = dict.fromkeys(["layers.1.attention", "layers.1.mlp"], torch.zeros_like)
    with probe(model, {"layers.0": None, "layers.1": None, **cut}) as captured:
        changed = run(model)
    torch.testing.assert_close(captured["layers.1"], captured["layers.0"])
    assert captured["layers.1.mlp"].abs().sum() > 0, "what is captured is from before the change"
    assert not torch.allclose(changed, run(model))


def test_patching_the_stream_of_one_run_into_another(model: DecoderLM) -> None:
    ctx = ForwardContext.without_cache([6], get_backend("reference", "cpu"))
    with probe(model, ["layers.0"]) as captured:
        wanted = run(model)
    with probe(model, {"layers.0": lambda _: captured["layers.0"]}):
        patched = model.logits(model(torch.arange(6, 12), ctx), ctx)
    torch.testing.assert_close(patched, wanted)


def test_a_function_that_only_looks_changes_nothing(model: DecoderLM) -> None:
    seen: list[Tensor] = []
    plain = run(model)
    with probe(model, {"layers.0.mlp": seen.append}):
        assert torch.equal(run(model), plain)
        run(model)
    run(model)
    assert len(seen) == 2


def test_gradients_flow_through_a_replacement(model: DecoderLM) -> None:
    steering = torch.zeros(32, requires_grad=True)
    with probe(model, {"layers.0": lambda stream: stream + steering}):
        run(model).logsumexp(-1).sum().backward()
    assert steering.grad is not None
    assert steering.grad.abs().sum() > 0


def test_everything_is_restored_after_an_exception(model: DecoderLM) -> None:
    plain = run(model)

    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), probe(model, {"head": fail, "norm": None}):
        run(model)
    assert hooks(model) == 0
    with pytest.raises(KeyboardInterrupt), probe(model, {"layers.1": torch.zeros_like}):
        raise KeyboardInterrupt
    assert hooks(model) == 0
    assert torch.equal(run(model), plain)


def test_probes_nest(model: DecoderLM) -> None:
    plain = run(model)
    with probe(model, {"head": lambda x: x + 1}):
        with probe(model, {"head": lambda x: x * 2}):
            torch.testing.assert_close(run(model), (plain + 1) * 2)
        torch.testing.assert_close(run(model), plain + 1)
    assert torch.equal(run(model), plain)


def test_an_unknown_point_names_near_ones_and_leaves_no_hook(model: DecoderLM) -> None:
    with (
        pytest.raises(ConfigError, match=r"layers\.1\.attention"),
        probe(model, ["head", "layers.1.atention"]),
    ):
        pass
    assert hooks(model) == 0


def test_a_replacement_of_another_shape_is_refused(model: DecoderLM) -> None:
    with (
        pytest.raises(ConfigError, match=r"probe\.norm"),
        probe(model, {"norm": lambda x: x[:1]}),
    ):
        run(model)
    assert hooks(model) == 0
