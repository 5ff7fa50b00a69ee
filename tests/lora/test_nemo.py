"""Adapters in NeMo's layout, written here: read as the PEFT adapter of the same matrices."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from drive import greedy
from torch import Tensor

from workbench.engine import Engine
from workbench.errors import AdapterError
from workbench.lora import read_adapter
from workbench.models import DecoderLM

RANK, ALPHA = 4, 6
LAYER = "model.layers.{}.{}.adapter_layer.{}.{}.weight"
Halves = dict[tuple[int, str], tuple[Tensor, Tensor]]


def halves(model: DecoderLM) -> Halves:
    """Return a and b of every linear layer, by layer and name; fused ones share their a."""
    c, generator = model.config, torch.Generator().manual_seed(3)
    sizes = {
        "q_proj": (c.num_heads * c.head_dim, c.hidden_size),
        "k_proj": (c.num_kv_heads * c.head_dim, c.hidden_size),
        "v_proj": (c.num_kv_heads * c.head_dim, c.hidden_size),
        "o_proj": (c.hidden_size, c.num_heads * c.head_dim),
        "gate_proj": (c.intermediate_size, c.hidden_size),
        "up_proj": (c.intermediate_size, c.hidden_size),
        "down_proj": (c.hidden_size, c.intermediate_size),
    }
    found: Halves = {}
    for layer in range(c.num_layers):
        for name, (outputs, inputs) in sizes.items():
            a = torch.randn(RANK, inputs, generator=generator) / 5
            shares = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}.get(name)
            a = a if shares is None else found[layer, shares][0]
            found[layer, name] = a, torch.randn(outputs, RANK, generator=generator) / 5
    return found


def fused_qkv(model: DecoderLM, b: dict[str, Tensor]) -> Tensor:
    """Return b of q, k and v row by row as Megatron has them: group by group, head by head."""
    c, rows = model.config, []
    per_group = c.num_heads // c.num_kv_heads
    for group in range(c.num_kv_heads):
        heads = [("q_proj", group * per_group + i) for i in range(per_group)]
        for name, head in (*heads, ("k_proj", group), ("v_proj", group)):
            rows += [b[name][head * c.head_dim + i] for i in range(c.head_dim)]
    return torch.stack(rows)


def nemo_tensors(model: DecoderLM, fused: bool) -> dict[str, Tensor]:
    """Return the content of `model_weights.ckpt`."""
    found, pairs = {}, halves(model)

    def put(layer: int, block: str, adapter: str, a: Tensor, b: Tensor) -> None:
        found[LAYER.format(layer, block, adapter, "linear_in")] = a
        found[LAYER.format(layer, block, adapter, "linear_out")] = b

    for layer in range(model.config.num_layers):
        a, b = ({n: pairs[layer, n][i] for (k, n) in pairs if k == layer} for i in (0, 1))
        if fused:
            put(layer, "self_attention", "lora_kqv_adapter", a["q_proj"], fused_qkv(model, b))
            both = torch.cat((b["gate_proj"], b["up_proj"]))
            put(layer, "mlp", "lora_hto4h_adapter", a["gate_proj"], both)
        else:
            for n in "qkv":
                name = f"lora_unfused_kqv_adapter.{n}_adapter"
                put(layer, "self_attention", name, a[f"{n}_proj"], b[f"{n}_proj"])
            for n in ("gate", "up"):
                name = f"lora_unfused_hto4h_adapter.{n}_adapter"
                put(layer, "mlp", name, a[f"{n}_proj"], b[f"{n}_proj"])
        dense = "lora_dense_attention_adapter"
        put(layer, "self_attention", dense, a["o_proj"], b["o_proj"])
        put(layer, "mlp", "lora_4htoh_adapter", a["down_proj"], b["down_proj"])
    return found


def settings(model: DecoderLM, **changes: Any) -> dict[str, Any]:
    """Return the content of `model_config.yaml`."""
    tuning = {
        "target_modules": ["attention"],
        "adapter_dim": RANK,
        "alpha": ALPHA,
        "adapter_dropout": 0.1,
        "column_init_method": "xavier",
        "layer_selection": None,
        "weight_tying": False,
    }
    return {
        "hidden_size": model.config.hidden_size,
        "num_layers": model.config.num_layers,
        "num_attention_heads": model.config.num_heads,
        "num_query_groups": model.config.num_kv_heads,
        "tensor_model_parallel_size": 1,
        "peft": {"peft_scheme": "lora", "lora_tuning": tuning | changes.pop("tuning", {})},
    } | changes


def contents(config: Any, weights: Any) -> dict[str, bytes]:
    saved = io.BytesIO()
    torch.save(weights, saved)
    return {"model_config.yaml": yaml.dump(config).encode(), "model_weights.ckpt": saved.getvalue()}


def archive(path: Path, files: dict[str, bytes], mode: str = "w", prefix: str = "./") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", ["archive", "folder", "unfused"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_it_is_the_adapter_of_these_matrices(
    model_of: Callable[..., DecoderLM], tmp_path: Path, family: str, form: str
) -> None:
    model = model_of(family)
    assert model.config.num_heads > model.config.num_kv_heads > 1, "groups say nothing"
    files = contents(settings(model), nemo_tensors(model, fused=form != "unfused"))
    if form == "folder":
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
    path = tmp_path if form == "folder" else archive(tmp_path / "a", files)
    adapter = read_adapter(path, model)
    expected = halves(model)
    assert len(adapter.pairs) == len(expected)
    for (layer, name), (a, b) in expected.items():
        block = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        pair = adapter.pairs[f"model.layers.{layer}.{block}.{name}"]
        assert torch.equal(pair.a, a), name
        assert torch.equal(pair.b, b), name
        assert pair.scale == ALPHA / RANK
    again = read_adapter(adapter.to_peft(tmp_path / "peft"), model)
    assert again.digest == adapter.digest, "PEFT's folder holds something else"


def test_requests_go_through_it_by_name(
    make_engine: Callable[..., Engine], model: DecoderLM, tmp_path: Path
) -> None:
    """And what a folder of PEFT's says gives the same tokens."""
    files = contents(settings(model), nemo_tensors(model, fused=True))
    engine = make_engine()
    engine.loras.load("nemo", archive(tmp_path / "a.nemo", files))
    folder = read_adapter(tmp_path / "a.nemo", model).to_peft(tmp_path / "peft")
    engine.loras.load("peft", folder)
    lora = ["nemo", "peft", None]
    outputs = engine.generate([[5, 6, 7]] * 3, greedy(8), lora=lora)
    nemo, peft, base = (output.outputs[0].token_ids for output in outputs)
    assert nemo == peft != base


def test_some_layers_and_the_default_alpha(model: DecoderLM, tmp_path: Path) -> None:
    tensors = {k: v for k, v in nemo_tensors(model, fused=True).items() if "layers.1." in k}
    config = settings(model, tuning={"alpha": None, "layer_selection": [2]})
    adapter = read_adapter(archive(tmp_path / "a", contents(config, tensors)), model)
    assert {path.split(".")[2] for path in adapter.pairs} == {"1"}
    assert {pair.scale for pair in adapter.pairs.values()} == {1.0}


KEY = LAYER.format(0, "self_attention", "lora_kqv_adapter", "linear_out")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 7}, "model_config.yaml: hidden_size=7: the model has 64"),
        ({"tensor_model_parallel_size": 2}, "tensor_model_parallel_size=2: tensors that are split"),
        ({"peft": {"peft_scheme": "ia3"}}, "peft.peft_scheme='ia3': only lora"),
        ({"peft": None}, "lora_tuning=None: must say adapter_dim"),
        ({"tuning": {"adapter_dim": 0}}, "lora_tuning.adapter_dim=0: must be a rank"),
        ({"tuning": {"alpha": "x"}}, "lora_tuning.alpha='x': must be a number"),
        ({"tuning": {"weight_tying": True}}, "lora_tuning.weight_tying=True: is not supported"),
        ({"tuning": {"variant": "x"}}, "lora_tuning.variant='x': must be nemo"),
        ({"tuning": {"layer_selection": [0]}}, r"layer_selection=\[0\]: must be numbers from 1"),
        (
            {"tuning": {"adapter_dim": 5}},
            r"model_weights.ckpt: .*lora_A.weight: has shape \[4, 64\]",
        ),
    ],
)
def test_settings_that_do_not_fit(
    model: DecoderLM, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    files = contents(settings(model, **changes), nemo_tensors(model, fused=True))
    with pytest.raises(AdapterError, match=says):
        read_adapter(archive(tmp_path / "a", files), model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(KEY), "the other half of lora_A.weight missing"),
        (lambda t: t.update({KEY: t[KEY][:-1]}), f"{KEY}: has 95 outputs".replace("95", r"\d+")),
        (lambda t: t.update({KEY: t[KEY] * torch.nan}), "numbers that are not finite"),
        (lambda t: t.update({KEY: t[KEY].int()}), "is torch.int32, not a float"),
        (
            lambda t: t.update({"model.layers.0.x.weight": t[KEY]}),
            "x.weight: the model has no such",
        ),
        (lambda t: t.update({KEY.replace(".0.", ".9."): t[KEY]}), "the model has no such place"),
        (lambda t: t.update({KEY: "text"}), r"no such place \(str\)"),
        (lambda t: t.clear(), "holds no adapter"),
    ],
)
def test_tensors_that_do_not_fit(
    model: DecoderLM, tmp_path: Path, change: Callable[..., Any], says: str
) -> None:
    tensors = nemo_tensors(model, fused=True)
    change(tensors)
    with pytest.raises(AdapterError, match=says):
        read_adapter(archive(tmp_path / "a", contents(settings(model), tensors)), model)


class Bomb:
    """Would write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "gone off")


def test_files_that_are_none(model: DecoderLM, tmp_path: Path) -> None:
    good = contents(settings(model), nemo_tensors(model, fused=True))
    target = tmp_path / "trap"
    weights, config = "model_weights.ckpt", "model_config.yaml"
    for says, files, mode in (
        ("damaged, or holds more than weights", contents(settings(model), Bomb(target)), "w"),
        ("damaged, or holds more than weights", good | {weights: b"PK"}, "w"),
        ("model_weights.ckpt is not in it", {config: good[config]}, "w"),
        ("model_config.yaml cannot be read", good | {config: b"{"}, "w"),
        ("model_config.yaml cannot be read", good | {config: b"!!python/object:x.Y {}"}, "w"),
        ("above 1048576", good | {config: b" " * (2 << 20)}, "w"),
        ("is no archive of NeMo's, uncompressed", good, "w:gz"),
        ("holds more than 64 files", {str(i): b"" for i in range(70)}, "w"),
        ("is no table of tensors", contents(settings(model), [1, 2]), "w"),
    ):
        with pytest.raises(AdapterError, match=says):
            read_adapter(archive(tmp_path / "a", files, mode), model)
    assert not target.exists(), "the archive ran code"
    (tmp_path / "a").write_bytes(b"no archive at all")
    with pytest.raises(AdapterError, match="is no archive of NeMo's"):
        read_adapter(tmp_path / "a", model)
    with tarfile.open(tmp_path / "a", "w") as tar:  # a link in the place of a file
        info = tarfile.TarInfo(weights)
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(AdapterError, match=r"model_weights\.ckpt is not in it"):
        read_adapter(tmp_path / "a", model)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / weights).write_bytes(good[weights])
    with pytest.raises(AdapterError, match=r"model_config\.yaml cannot be read"):
        read_adapter(tmp_path / "c", model)
    (tmp_path / "b" / "weights").mkdir(parents=True)
    with pytest.raises(AdapterError, match="a checkpoint of NeMo 2"):
        read_adapter(tmp_path / "b", model)
