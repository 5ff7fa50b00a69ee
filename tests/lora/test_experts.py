"""Adapters of experts: in both layouts that PEFT has written, computed as PEFT computes them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drive import drawn, greedy
from hf import reference
from peft_adapters import peft_model, write_adapter
from random_adapters import random_adapter
from safetensors.torch import load_file, save_file
from tiny import random_prompts

from workbench.batch import ForwardContext
from workbench.engine import Engine
from workbench.errors import AdapterError, ConfigError
from workbench.lora import merge, read_adapter
from workbench.models import DecoderLM
from workbench.ops import get_backend

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CONFIGS: dict[str, dict[str, Any]] = {
    "parameters": {"target_modules": ["q_proj"], "target_parameters": EXPERTS, "r": 3},
    "one parameter": {"target_modules": ["v_proj"], "target_parameters": EXPERTS[1:], "r": 2},
    "only parameters": {"target_modules": [], "target_parameters": EXPERTS, "r": 2},
    "router": {"target_modules": [], "target_parameters": [*EXPERTS, "gate.weight"], "r": 2},
    "all linear": {"target_modules": "all-linear", "r": 3},  # w1 and w3 fused: twice the rank
    "named as they were": {"target_modules": ["w1", "w2", "w3", "q_proj"], "r": 2},
    "patterns": {
        "target_modules": ["q_proj"],
        "target_parameters": EXPERTS,
        "r": 2,
        "lora_alpha": 3,
        "rank_pattern": {r".*\.down_proj": 5},
        "alpha_pattern": {r"layers\.1\.mlp\.experts\.gate_up_proj": 7},
        "use_rslora": True,
    },
}


@pytest.fixture(scope="session")
def adapter(
    checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return the folder of an adapter in one of `CONFIGS`, written once by PEFT."""
    folders: dict[tuple[str, int], Path] = {}

    def folder_of(name: str, seed: int = 0) -> Path:
        if (name, seed) not in folders:
            folder = tmp_path_factory.mktemp("experts")
            base = checkpoint("mixtral")
            folders[name, seed] = write_adapter(folder, base, seed, **CONFIGS[name])
        return folders[name, seed]

    return folder_of


def logits_of(model: DecoderLM, prompts: list[list[int]]) -> torch.Tensor:
    ctx = ForwardContext.without_cache([len(p) for p in prompts], get_backend("reference"))
    with torch.inference_mode():
        return model.logits(model(torch.tensor([i for p in prompts for i in p]), ctx), ctx)


def peft_logits(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([p])).logits[0] for p in prompts])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_merged_adapter_computes_what_peft_does(
    checkpoint: Callable[..., Path],
    adapter: Callable[..., Path],
    model_of: Callable[..., DecoderLM],
    name: str,
) -> None:
    model, prompts = model_of("mixtral"), random_prompts(3, 1)
    theirs = peft_logits(peft_model(checkpoint("mixtral"), 0, **CONFIGS[name]), prompts)
    base = logits_of(model, prompts)
    undo = merge(model, read_adapter(adapter(name), model))
    ours = logits_of(model, prompts)
    undo()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=3e-5)
    assert (base - theirs).abs().max() > 1e-2, "the adapter does nothing"
    assert torch.equal(logits_of(model, prompts), base)


@pytest.fixture
def per_expert(model_of: Callable[..., DecoderLM], tmp_path: Path) -> Path:
    """An adapter of experts as single modules, as PEFT wrote it while they were that."""
    model, generator = model_of("mixtral"), torch.Generator().manual_seed(5)
    c, tensors = model.config, {}
    for layer in range(c.num_layers):
        for expert in range(c.num_experts):
            for name in ("w1", "w2", "w3"):
                inner, outer = c.intermediate_size, c.hidden_size
                inputs, outputs = (inner, outer) if name == "w2" else (outer, inner)
                path = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                for half, shape in (("A", (2, inputs)), ("B", (outputs, 2))):
                    key = f"base_model.model.{path}.lora_{half}.weight"
                    tensors[key] = 0.2 * torch.randn(shape, generator=generator)
    folder = tmp_path / "per expert"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 3}
    config |= {"target_modules": ["w1", "w2", "w3"], "base_model_name_or_path": "x"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_experts_as_single_modules(
    checkpoint: Callable[..., Path],
    model_of: Callable[..., DecoderLM],
    per_expert: Path,
    tmp_path: Path,
) -> None:
    """What PEFT itself makes of such a file, and of what we export."""
    import peft

    model, prompts = model_of("mixtral"), random_prompts(3, 1)
    adapter = read_adapter(per_expert, model)
    undo = merge(model, adapter)
    ours = logits_of(model, prompts)
    undo()
    for folder in (per_expert, adapter.to_peft(tmp_path / "out")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base = reference(checkpoint("mixtral"))
            theirs = peft.PeftModel.from_pretrained(base, str(folder)).eval()
        torch.testing.assert_close(ours, peft_logits(theirs, prompts), rtol=1e-5, atol=3e-5)
    assert read_adapter(tmp_path / "out", model).digest == adapter.digest


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_each_request_goes_through_its_own(
    make_engine: Callable[..., Engine],
    adapter: Callable[..., Path],
    model_of: Callable[..., DecoderLM],
    per_expert: Path,
    tmp_path: Path,
    backend: str,
) -> None:
    """A pair of a token and an expert takes what the token's adapter has for that expert."""
    model, lora = model_of("mixtral"), ["a", None, "b:0.5", "c", "a:0.5+c:-0.5", "d"]
    folders = {"a": adapter("parameters", 1), "b": adapter("all linear", 2), "c": per_expert}
    folders["d"] = random_adapter(model, 7, dora=True).to_peft(tmp_path / "d")
    prompts = random_prompts(len(lora), seed=5)
    params = [drawn(i, 10) if i % 2 else greedy(10, logprobs=0) for i in range(len(lora))]
    expected = []
    for prompt, own, uses in zip(prompts, params, lora, strict=True):
        parts = [part.partition(":") for part in (uses.split("+") if uses else ())]
        factors = {read_adapter(folders[n], model): float(f or 1) for n, _, f in parts}
        undo = merge(model, factors)
        engine = make_engine("mixtral", backend="reference", prefix_reuse=False)
        expected.append(engine.generate([prompt], own)[0].outputs[0])
        undo()
    engine = make_engine("mixtral", backend=backend, max_batch_tokens=32)
    for name, folder in folders.items():
        engine.loras.load(name, folder)
    found = engine.generate(prompts, params, lora=lora)
    for output, one, uses in zip(found, expected, lora, strict=True):
        assert output.outputs[0].token_ids == one.token_ids, uses
        for a, b in zip(output.outputs[0].logprobs or (), one.logprobs or (), strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=2e-5, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "config", "says"),
    [
        (lambda t, k: t.pop(k), {}, "its other half is missing"),
        (lambda t, k: t.update({k: t[k][:-1].contiguous()}), {}, "fit none of model.layers.0.mlp"),
        (lambda t, k: None, {"r": 4}, "fit none of model.layers.0.mlp"),
        (lambda t, k: None, {"target_parameters": ["x.y"]}, "target_parameters='x.y': names no"),
        (lambda t, k: None, {"target_parameters": EXPERTS[1:]}, "fit none of"),
    ],
)
def test_tensors_that_do_not_fit(
    adapter: Callable[..., Path],
    model_of: Callable[..., DecoderLM],
    tmp_path: Path,
    change: Callable[..., Any],
    config: dict[str, Any],
    says: str,
) -> None:
    shutil.copytree(adapter("parameters"), tmp_path / "a")
    weights, settings = tmp_path / "a/adapter_model.safetensors", tmp_path / "a/adapter_config.json"
    tensors = load_file(weights)
    change(tensors, "base_model.model.model.layers.0.mlp.experts.lora_A.weight")
    save_file(tensors, weights)
    settings.write_text(json.dumps(json.loads(settings.read_text()) | config))
    with pytest.raises(AdapterError, match=says):
        read_adapter(tmp_path / "a", model_of("mixtral"))


def test_a_model_without_experts_refuses_them(
    adapter: Callable[..., Path], model: DecoderLM
) -> None:
    with pytest.raises(AdapterError, match="names no parameter that can be adapted here: none"):
        read_adapter(adapter("parameters"), model)


def test_passes_are_not_replayed(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine("mixtral", backend="native")
    assert engine.runner.tapes is None
    with pytest.raises(ConfigError, match="tape=True: a MixtralForCausalLM routes tokens"):
        make_engine("mixtral", backend="native", tape=True)
