"""Adapters that the installed PEFT wrote: read, merged and run as PEFT itself computes them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_adapters import CONFIGS, peft_model, write_adapter
from safetensors.torch import load_file, save_file
from tiny import random_prompts

from workbench.batch import ForwardContext
from workbench.errors import AdapterError, ConfigError
from workbench.lora import Adapter, merge, read_adapter, reader
from workbench.lora.weights_file import WeightsFile
from workbench.models import DecoderLM
from workbench.ops import get_backend

WEIGHTS = "adapter_model.safetensors"


def logits_of(model: DecoderLM, prompts: list[list[int]]) -> torch.Tensor:
    """Return the logits of whole prompts, one after the other."""
    ctx = ForwardContext.without_cache([len(p) for p in prompts], get_backend("reference"))
    with torch.inference_mode():
        return model.logits(model(torch.tensor([i for p in prompts for i in p]), ctx), ctx)


def peft_logits(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    """Return PEFT's logits of the same."""
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([p])).logits[0] for p in prompts])


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_merged_adapter_computes_what_peft_does(
    checkpoint: Callable[..., Path],
    adapter_of: Callable[..., Path],
    model_of: Callable[..., DecoderLM],
    name: str,
    family: str,
) -> None:
    model, prompts = model_of(family), random_prompts(3, 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    theirs = peft_logits(peft_model(checkpoint(family), 0, **CONFIGS[name]), prompts)
    base = logits_of(model, prompts)
    undo = merge(model, read_adapter(adapter_of(name, family), model))
    ours = logits_of(model, prompts)
    undo()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=3e-5)
    assert (base - theirs).abs().max() > 1e-2, "the adapter does nothing"
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases(
    checkpoint: Callable[..., Path],
    model_of: Callable[..., DecoderLM],
    tmp_path: Path,
    bias: str,
    use_dora: bool,
) -> None:
    """Qwen2 has biases at q, k and v."""
    model, prompts = model_of("qwen2"), random_prompts(3, 1)
    settings = {"target_modules": ["q_proj", "v_proj"], "r": 2, "bias": bias} | {
        "use_dora": use_dora
    }
    folder = write_adapter(tmp_path / "a", checkpoint("qwen2"), 3, **settings)
    theirs = peft_logits(peft_model(checkpoint("qwen2"), 3, **settings), prompts)
    adapter = read_adapter(folder, model)
    assert adapter.biases, "PEFT saved none"
    undo = merge(model, adapter)
    ours = logits_of(model, prompts)
    undo()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("name", ["all linear", "dora", "dora, some"])
def test_a_factor_is_peft_s_scale(
    checkpoint: Callable[..., Path], adapter_of: Callable[..., Path], model: DecoderLM, name: str
) -> None:
    """Of DoRA too: the lengths of its rows depend on it."""
    from peft.tuners.lora import LoraLayer

    theirs, prompts = peft_model(checkpoint(), 0, **CONFIGS[name]), random_prompts(3, 1)
    for module in theirs.modules():
        if isinstance(module, LoraLayer):
            for key in module.scaling:  # `scale_layer` leaves embeddings out
                module.scaling[key] *= 0.5
    undo = merge(model, {read_adapter(adapter_of(name), model): 0.5})
    ours = logits_of(model, prompts)
    undo()
    torch.testing.assert_close(ours, peft_logits(theirs, prompts), rtol=1e-5, atol=3e-5)


def test_dora_is_not_merged_with_others(adapter_of: Callable[..., Path], model: DecoderLM) -> None:
    one, two = (read_adapter(adapter_of(name), model) for name in ("dora", "list"))
    with pytest.raises(ConfigError, match="DoRA adapter scales outputs, and is not combined"):
        merge(model, {one: 0.5, two: 0.5})


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_exported_is_read_by_peft_and_by_us(
    checkpoint: Callable[..., Path],
    adapter_of: Callable[..., Path],
    model: DecoderLM,
    tmp_path: Path,
    name: str,
) -> None:
    import peft
    from hf import reference

    adapter = read_adapter(adapter_of(name), model)
    folder = adapter.to_peft(tmp_path / "out")
    assert read_adapter(folder, model).digest == adapter.digest
    prompts = random_prompts(2, 4)
    theirs = peft.PeftModel.from_pretrained(reference(checkpoint()), str(folder)).eval()
    undo = merge(model, adapter)
    ours = logits_of(model, prompts)
    undo()
    torch.testing.assert_close(ours, peft_logits(theirs, prompts), rtol=1e-5, atol=3e-5)
    with pytest.raises(ConfigError, match="holds an adapter already"):
        adapter.to_peft(folder)


def test_a_combination_merges_as_the_sum(adapter_of: Callable[..., Path], model: DecoderLM) -> None:
    one, two = (read_adapter(adapter_of(seed=seed), model) for seed in (0, 1))
    weight = model.layers[0].mlp.down_proj.weight.clone()  # type: ignore[index,union-attr]
    undo = merge(model, {one: 0.5, two: -2.0})
    path = "model.layers.0.mlp.down_proj"
    expected = weight + 0.5 * one.pairs[path].delta() - 2 * two.pairs[path].delta()
    torch.testing.assert_close(model.layers[0].mlp.down_proj.weight, expected)  # type: ignore[index,union-attr]
    undo()
    assert torch.equal(model.layers[0].mlp.down_proj.weight, weight)  # type: ignore[index,union-attr]


@pytest.fixture
def copy(adapter_of: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of an adapter that a test may damage."""
    shutil.copytree(adapter_of(), tmp_path / "copy")
    return tmp_path / "copy"


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(A), r"q_proj: the other half of lora_B\.weight missing"),
        (lambda t: t.update({A: t[A][:, :-1].contiguous()}), r"has shape \[4, 63\].*\[4, 64\]"),
        (lambda t: t.update({A: t[A].int()}), r"is I32, not a float"),
        (lambda t: t.update({A: t[A] * torch.nan}), r"numbers that are not finite"),
        (lambda t: t.update({"base_model.model.x.lora_A.weight": t[A].clone()}), "no such place"),
        (lambda t: t.update({A.replace(".0.", ".9."): t[A].clone()}), "no such place"),
        (
            lambda t: t.update({A.replace("lora_A.weight", "lora_magnitude_vector"): t[A].clone()}),
            "has a lora_magnitude_vector, and use_dora=False",
        ),
        (lambda t: t.clear(), "both A and B missing"),
    ],
)
def test_tensors_that_do_not_fit(
    copy: Path, model: DecoderLM, change: Callable[..., Any], says: str
) -> None:
    change_tensors(copy, change)
    with pytest.raises(AdapterError, match=says) as raised:
        read_adapter(copy, model)
    assert all(problem.startswith(f"{WEIGHTS}: ") for problem in raised.value.problems)


def test_another_base_is_refused_by_its_dimensions_and_named(
    copy: Path, model_of: Callable[..., DecoderLM]
) -> None:
    config = json.loads((copy / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "someone/else"
    (copy / "adapter_config.json").write_text(json.dumps(config))
    change_tensors(copy, lambda t: t.update({k: v[:3] for k, v in t.items()}))
    with pytest.raises(AdapterError, match="made for 'someone/else'") as raised:
        read_adapter(copy, model_of("qwen2"))
    assert len(raised.value.problems) == 28, "every fault is told"


def test_ranks_above_the_limit(copy: Path, model: DecoderLM) -> None:
    with pytest.raises(AdapterError, match=r"rank 4 is above max_rank=3"):
        read_adapter(copy, model, max_rank=3)


@pytest.mark.parametrize("keep", [0, 7, 100, -8])
def test_damaged_files(copy: Path, model: DecoderLM, keep: int) -> None:
    raw = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(raw[:keep])
    with pytest.raises(AdapterError, match="is damaged"):
        read_adapter(copy, model)


def test_a_file_is_read_whole_whatever_its_alignment(tmp_path: Path) -> None:
    """Also one larger than a piece, whose tensors do not begin where their dtype would."""
    made = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "half": torch.randn(5, 3).bfloat16(),
        "wide": torch.randn(3, dtype=torch.float64),
        "large": torch.randn(1500, 1000),
        "empty": torch.empty(0, 4),
    }
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    raw, codes = b"", {torch.uint8: "U8", torch.bool: "BOOL", torch.bfloat16: "BF16"}
    codes |= {torch.float64: "F64", torch.float32: "F32"}
    for name, tensor in made.items():
        its = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        offsets = [len(raw), len(raw) + len(its)]
        code = codes[tensor.dtype]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": offsets}
        raw += its
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw)
    with WeightsFile(path) as file:
        names = file.keys()
        found = {name: file.get_tensor(name) for name in names}
        assert file.get_slice("half").get_shape() == [5, 3]
        assert file.get_slice("half").get_dtype() == "BF16"
    assert list(found) == list(made)
    for name, tensor in made.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_a_file_that_is_cut_short_while_it_is_read(
    copy: Path, model: DecoderLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapped one would end the process."""

    class Cut(WeightsFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            os.truncate(path, path.stat().st_size - 4)

    monkeypatch.setattr(reader, "WeightsFile", Cut)
    with pytest.raises(AdapterError, match="is damaged: ends at byte"):
        read_adapter(copy, model)


def test_what_is_not_there_or_pickled(copy: Path, model: DecoderLM) -> None:
    (copy / WEIGHTS).rename(copy / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"only adapter_model\.bin, which is not read"):
        read_adapter(copy, model)
    (copy / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"adapter_config\.json cannot be read"):
        read_adapter(copy, model)
    with pytest.raises(AdapterError, match="is no folder"):
        read_adapter(copy / "nowhere", model)


def test_an_embedding_of_another_base_is_refused(
    adapter_of: Callable[..., Path], model: DecoderLM, tmp_path: Path
) -> None:
    """PEFT stores an adapted embedding's own table too: it says what the adapter was made for."""
    shutil.copytree(adapter_of("embedding"), tmp_path / "a")
    name = "base_model.model.model.embed_tokens.base_layer.weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][5, 5] += 1

    assert isinstance(read_adapter(tmp_path / "a", model), Adapter)
    change_tensors(tmp_path / "a", change)
    with pytest.raises(AdapterError, match="another table of embeddings"):
        read_adapter(tmp_path / "a", model)
