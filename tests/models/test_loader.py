"""load_model: where weights go, what they are held in, what the model says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from workbench.batch import ForwardContext
from workbench.errors import ConfigError
from workbench.models import FAMILIES, DecoderLM, LlamaForCausalLM, load_model
from workbench.ops import get_backend

Folder = Callable[[str], Path]


def logits(model: DecoderLM) -> torch.Tensor:
    """Return logits of a fixed sequence."""
    ids = torch.arange(20, device=model.device)
    ctx = ForwardContext.without_cache([20], get_backend("reference", model.device), model.device)
    return model.logits(model(ids, ctx), ctx)


def test_nothing_stays_on_meta_and_nothing_asks_for_gradients(checkpoint: Folder) -> None:
    for case in ("llama", "llama-dynamic", "qwen2"):
        model = load_model(checkpoint(case), device="cpu")
        tensors = [*model.parameters(), *model.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"cpu"}
        assert not any(tensor.requires_grad for tensor in tensors)
        assert not model.training


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16])
def test_dtype(checkpoint: Folder, dtype: str | torch.dtype) -> None:
    exact = load_model(checkpoint("llama-llama3"), device="cpu", dtype="float32")
    model = load_model(checkpoint("llama-llama3"), device="cpu", dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    assert {str(p.dtype) for p in model.parameters()} == {f"torch.{name}"}
    assert model.config.dtype == name
    assert logits(model).dtype == model.dtype
    assert torch.equal(model.rope.inv_freq, exact.rope.inv_freq)  # angles stay in float32
    torch.testing.assert_close(logits(model).float(), logits(exact), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("instruction", "stated", "expected"),
    [
        (None, "bfloat16", torch.float32),
        ("avx512_bf16", "bfloat16", torch.bfloat16),
        ("amx_bf16", "bfloat16", torch.bfloat16),
        ("bf16", "bfloat16", torch.bfloat16),
        ("avx512_bf16", "float32", torch.float32),
        ("avx512_bf16", "float16", torch.float32),
    ],
)
def test_auto_dtype_on_a_cpu(
    copied: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    instruction: str | None,
    stated: str,
    expected: torch.dtype,
) -> None:
    folder = copied()
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": stated}))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, instruction: True})
    assert load_model(folder, device="cpu").dtype == expected


@pytest.mark.gpu
def test_auto_dtype_is_the_checkpoints_on_cuda(copied: Callable[..., Path]) -> None:
    folder = copied()
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "bfloat16"}))
    model = load_model(folder)
    assert (model.dtype, model.device.type) == (torch.bfloat16, "cuda")
    assert model.rope.inv_freq.device.type == "cuda"
    assert logits(model).isfinite().all()


@pytest.mark.gpu
def test_the_same_logits_on_cuda(checkpoint: Folder) -> None:
    for case in ("llama-dynamic", "qwen2-max-window-layers"):
        cpu = load_model(checkpoint(case), device="cpu")
        cuda = load_model(checkpoint(case), device="cuda", dtype="float32")
        torch.testing.assert_close(logits(cuda).cpu(), logits(cpu), rtol=1e-3, atol=1e-4)


def test_a_cast_or_moved_model_keeps_its_frequencies(checkpoint: Folder) -> None:
    model = load_model(checkpoint("llama-yarn"), device="cpu")
    before = model.rope.inv_freq.clone()
    model.to(torch.bfloat16)
    assert model.rope.inv_freq.dtype == torch.float32
    assert torch.equal(model.rope.inv_freq, before)
    model.to("meta").to_empty(device="cpu")
    assert torch.equal(model.rope.inv_freq, before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "gpu"),
        ("device", "cuda:97"),
        ("device", "meta"),
        ("dtype", "int8"),
        ("dtype", "fp32"),
    ],
)
def test_a_bad_setting_is_named(checkpoint: Folder, field: str, value: str) -> None:
    settings = {"device": "cpu", field: value}
    with pytest.raises(ConfigError) as caught:
        load_model(checkpoint("llama"), **settings)
    assert caught.value.field == field


def test_end_tokens_of_the_generation_config_win(copied: Callable[..., Path]) -> None:
    folder = copied()
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": 2}))
    generation = folder / "generation_config.json"
    generation.unlink(missing_ok=True)
    assert load_model(folder, device="cpu").config.eos_token_ids == (2,)
    generation.write_text('{"eos_token_id": [7, 8]}')
    assert load_model(folder, device="cpu").config.eos_token_ids == (7, 8)
    generation.write_text('{"temperature": 1.0}')
    assert load_model(folder, device="cpu").config.eos_token_ids == (2,)


def test_a_tied_head_is_one_parameter(checkpoint: Folder) -> None:
    tied = load_model(checkpoint("llama-tied"), device="cpu")
    untied = load_model(checkpoint("llama"), device="cpu")
    assert tied.head.weight is tied.embedding.weight
    assert untied.num_parameters - tied.num_parameters == 97 * 64


def test_what_the_model_shows(checkpoint: Folder) -> None:
    model = load_model(checkpoint("mistral-window"), device="cpu")
    facts = model.describe()
    assert facts["family"] == "MistralForCausalLM"
    assert facts["heads"] == "4 query, 1 key/value, of 16"
    assert facts["layers"] == 3
    assert facts["context"] == 32
    assert (facts["dtype"], facts["device"]) == ("float32", "cpu")
    bytes_of_weights = sum(4 * p.numel() for p in model.parameters())
    assert model.num_bytes == bytes_of_weights + 4 * 8  # and the frequencies
    page = model._repr_html_()
    assert all(str(value) in page for value in facts.values())


def test_bare_weights_have_no_tokenizer(checkpoint: Folder) -> None:
    assert load_model(checkpoint("llama"), device="cpu").tokenizer is None


def test_an_own_family_needs_no_registration(copied: Callable[..., Path]) -> None:
    class Shouting(LlamaForCausalLM):
        """Doubles its logits."""

        def logits(self, hidden: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
            return 2 * super().logits(hidden, ctx)

    folder = copied()
    model = load_model(folder, device="cpu", families={**FAMILIES, "LlamaForCausalLM": Shouting})
    assert torch.equal(logits(model), 2 * logits(load_model(folder, device="cpu")))


def test_a_model_without_a_checkpoint_starts_from_its_seed(checkpoint: Folder) -> None:
    config = load_model(checkpoint("llama-biases"), device="cpu").config
    first, second, other = (LlamaForCausalLM(config) for _ in range(3))
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        model.init_weights(std=0.05, seed=seed)
    assert torch.equal(logits(first), logits(second))
    assert not torch.equal(logits(first), logits(other))
    assert logits(first).isfinite().all()
    assert first.layers[0].attention.qkv_proj.bias.count_nonzero() == 0
    assert first.head.weight.std().item() == pytest.approx(0.05, rel=0.05)
