"""Damaged checkpoints: one error, raised before memory is taken, that lists every fault."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from workbench.errors import CheckpointError, ConfigError
from workbench.models import load_model

INDEX = "model.safetensors.index.json"
Copied = Callable[..., Path]


def shards(folder: Path) -> list[Path]:
    """Return the shard files; there are several, or the test would prove little."""
    found = sorted(folder.glob("model-*.safetensors"))
    assert len(found) >= 3
    return found


def merge(folder: Path) -> dict[str, torch.Tensor]:
    """Turn the shards into one file and return its tensors; the index goes."""
    tensors = {name: t for file in shards(folder) for name, t in load_file(file).items()}
    for file in [*shards(folder), folder / INDEX]:
        file.unlink()
    save(folder, tensors)
    return tensors


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write one whole file."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    """Change keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def problems(folder: Path) -> list[str]:
    """Return what load_model says is wrong."""
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, device="cpu")
    assert str(folder) in str(caught.value)
    assert "save_pretrained" in caught.value.fix
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def test_every_wrong_tensor_is_in_the_one_error(copied: Copied) -> None:
    folder = copied()
    tensors = merge(folder)
    del tensors["model.layers.0.self_attn.k_proj.weight"], tensors["model.norm.weight"]
    tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(96, 64)
    tensors["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(64, 65)
    tensors["model.layers.2.mlp.down_proj.weight"] = torch.zeros(64, 96, dtype=torch.int8)
    save(folder, tensors)
    found = problems(folder)
    assert len(found) == 5
    text = "\n".join(found)
    assert "missing tensor model.layers.0.self_attn.k_proj.weight [32, 64]" in text
    assert "missing tensor model.norm.weight [64]" in text
    assert "unexpected tensor model.layers.9.mlp.up_proj.weight [96, 64]" in text
    assert (
        "q_proj.weight in model.safetensors has shape [64, 65], config.json makes it [64, 64]"
        in text
    )
    assert "model.layers.2.mlp.down_proj.weight in model.safetensors is I8, not a float" in text


def test_a_bias_that_the_config_does_not_have(copied: Copied) -> None:
    folder = copied("llama-biases")
    edit_config(folder, attention_bias=False)
    found = problems(folder)
    assert len(found) == 4 * 3
    assert all(problem.startswith("unexpected tensor") for problem in found)


def test_several_damaged_files_at_once(copied: Copied) -> None:
    folder = copied()
    first, second, third, *_ = shards(folder)
    first.write_bytes(first.read_bytes()[:-10])
    second.unlink()
    third.write_bytes(b"\xff" * 100)
    found = problems(folder)  # and not a line for every tensor that was in them
    assert len(found) == 3
    assert f"{second.name}, which is not there" in found[0]
    assert found[1].startswith(f"{first.name} (")
    assert found[2].startswith(f"{third.name} (100 bytes) is damaged")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is damaged"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{not json at all", "is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    ],
)
def test_a_whole_file_that_is_none(copied: Copied, content: bytes, why: str) -> None:
    folder = copied()
    merge(folder)
    (folder / "model.safetensors").write_bytes(content)
    (found,) = problems(folder)
    assert why in found


def test_a_truncated_whole_file(copied: Copied) -> None:
    folder = copied()
    merge(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (found,) = problems(folder)
    assert "model.safetensors (" in found


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_cannot_be_read(copied: Copied, content: str) -> None:
    folder = copied()
    (folder / INDEX).write_text(content)
    (found,) = problems(folder)
    assert INDEX in found


def test_an_index_that_is_wrong(copied: Copied) -> None:
    folder = copied()
    index = json.loads((folder / INDEX).read_text())
    names = index["weight_map"]
    moved, gone = list(names)[:2]
    here, elsewhere = names[moved], next(f for f in names.values() if f != names[moved])
    names[moved] = elsewhere
    names["model.extra"] = here
    names[gone] = "../stolen.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    found = problems(folder)
    assert f"{INDEX} puts {moved} into {elsewhere}, where it is not" in found
    assert f"{INDEX} puts model.extra into {here}, where it is not" in found
    assert f"{INDEX} names '../stolen.safetensors', which is not a plain file name" in found


def test_a_tensor_in_two_shards(copied: Copied) -> None:
    folder = copied()
    first, second, *_ = shards(folder)
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second)
    assert f"tensor {name} is in both {first.name} and {second.name}" in problems(folder)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_refused_and_never_opened(copied: Copied, tmp_path: Path, name: str) -> None:
    folder = copied()
    merge(folder)
    (folder / "model.safetensors").unlink()
    trace = tmp_path / "was-unpickled"
    (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
    (found,) = problems(folder)
    assert f"only pickled weights ({name})" in found
    assert not trace.exists()
    pickle.loads((folder / name).read_bytes())
    assert trace.exists(), "the bomb does not work, so the test proved nothing"


def test_shards_without_an_index(copied: Copied) -> None:
    folder = copied()
    (folder / INDEX).unlink()
    (found,) = problems(folder)
    assert f"without {INDEX}" in found


def test_no_weights_at_all(copied: Copied) -> None:
    folder = copied()
    for file in [*shards(folder), folder / INDEX]:
        file.unlink()
    assert problems(folder) == [f"neither model.safetensors nor {INDEX}"]


def test_harmless_extras_load(copied: Copied) -> None:
    folder = copied("llama-tied")
    tensors = merge(folder)
    save(
        folder,
        {
            **tensors,
            "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        },
    )
    model = load_model(folder, device="cpu")
    assert model.head.weight is model.embedding.weight


def test_a_tied_head_that_differs(copied: Copied) -> None:
    folder = copied("llama-tied")
    tensors = merge(folder)
    save(folder, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1})
    assert problems(folder) == [
        "tensor lm_head.weight differs from model.embed_tokens.weight, but config.json ties the two"
    ]


def test_an_untied_head_that_is_missing(copied: Copied) -> None:
    folder = copied("llama-tied")
    edit_config(folder, tie_word_embeddings=False)
    assert problems(folder) == ["missing tensor lm_head.weight [97, 64] (for head.weight)"]


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_a_config_that_cannot_be_read(copied: Copied, content: str) -> None:
    folder = copied()
    (folder / "config.json").write_text(content)
    (found,) = problems(folder)
    assert found.startswith("config.json")


def test_half_a_tokenizer(copied: Copied) -> None:
    folder = copied()
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_model(folder, device="cpu")


def test_an_unknown_architecture_lists_the_known(copied: Copied) -> None:
    folder = copied()
    edit_config(folder, architectures=["GPT2LMHeadModel"])
    with pytest.raises(
        ConfigError,
        match="LlamaForCausalLM, MistralForCausalLM, MixtralForCausalLM, Qwen2ForCausalLM",
    ):
        load_model(folder, device="cpu")


def test_code_of_the_checkpoint_is_never_run(copied: Copied, tmp_path: Path) -> None:
    folder, trace = copied(), tmp_path / "was-run"
    (folder / "modeling_own.py").write_text(f"open({str(trace)!r}, 'w')\nclass Own: pass\n")
    edit_config(
        folder, architectures=["Own"], auto_map={"AutoModelForCausalLM": "modeling_own.Own"}
    )
    with pytest.raises(ConfigError, match="needs code from the checkpoint, which is never run"):
        load_model(folder, device="cpu")
    assert not trace.exists()


def test_the_files_are_closed_after_a_fault(copied: Copied) -> None:
    folder = copied()
    shards(folder)[1].unlink()
    problems(folder)
    with safe_open(str(shards(folder)[0]), framework="pt") as handle:
        assert list(handle.keys())
    open_files = [path.resolve() for path in Path("/proc/self/fd").iterdir() if path.exists()]
    assert not [path for path in open_files if path.is_relative_to(folder.resolve())]
