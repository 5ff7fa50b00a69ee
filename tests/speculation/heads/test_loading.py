"""Loading and saving heads: what was found is said, what does not fit is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import head_files as files
import pytest
import torch
from safetensors.torch import load_file

from workbench.errors import CheckpointError, ConfigError
from workbench.speculation.heads import DraftVocabulary, Eagle3Head, load_head, save_head

EAGLE3 = files.CONFIG | {"draft_vocab_size": 20, "norm_before_residual": False}
SPECULATORS = {
    "speculators_model_type": "eagle3",
    "speculators_version": "0.3.0",
    "draft_vocab_size": 20,
    "norm_before_residual": True,
    "eagle_aux_hidden_state_layer_ids": [2, 4, 5],
    "transformer_layer_config": files.CONFIG,
    "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "x"}},
}
BASE = files.CONFIG | {"num_hidden_layers": files.LAYERS}
DFLASH = files.CONFIG | {
    "num_hidden_layers": 2,
    "block_size": 5,
    "dflash_config": {"mask_token_id": 60, "target_layer_ids": [1, 3, 5]},
}
# kind -> (config, tensors, file name, what `source` says)
CASES: dict[str, Any] = {
    "medusa": ({"medusa_num_heads": 3}, files.medusa, "medusa_lm_head.safetensors", "medusa"),
    "medusa-blocks": (
        {"medusa_num_heads": 2, "medusa_num_layers": 2, "tree_paths": [[0], [1], [0, 0]]},
        lambda: files.medusa(2, 2),
        "medusa_lm_head.safetensors",
        "medusa",
    ),
    "hydra": (
        {"hydra_num_heads": 3, "hydra_num_layers": 3},
        lambda: files.hydra(3, 3),
        "hydra_lm_head.safetensors",
        "hydra",
    ),
    "hydra-prefix": (
        {"hydra_num_heads": 3, "hydra_num_layers": 2, "hydra_head_arch": "prefix-mlp"},
        lambda: files.hydra(prefix=True),
        "hydra_lm_head.safetensors",
        "hydra",
    ),
    "eagle": (files.CONFIG, files.eagle, "model.safetensors", "eagle, raw layout"),
    "eagle3": (EAGLE3, files.eagle3, "model.safetensors", "eagle3, raw layout (midlayer)"),
    "eagle3-layers.0": (
        EAGLE3,
        lambda: files.eagle3("layers.0"),
        "model.safetensors",
        "eagle3, raw layout (layers.0)",
    ),
    "eagle3-speculators": (
        SPECULATORS,
        lambda: files.eagle3("layers.0"),
        "model.safetensors",
        "eagle3, speculators format",
    ),
    "mtp-deepseek": (
        BASE,
        lambda: files.mtp("deepseek"),
        "model.safetensors",
        "mtp, deepseek layout",
    ),
    "mtp-qwen3_next": (
        BASE,
        lambda: files.mtp("qwen3_next"),
        "model.safetensors",
        "mtp, qwen3_next layout",
    ),
    "mtp-speculators": (
        {"speculators_model_type": "mtp", "transformer_layer_config": BASE},
        lambda: files.mtp("speculators"),
        "model.safetensors",
        "mtp, speculators format",
    ),
    "dflash": (DFLASH, files.dflash, "model.safetensors", "dflash"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_back_is_what_was_read(case: str, tmp_path: Path, target) -> None:
    config, make, file, source = CASES[case]
    tensors = make()
    head = load_head(files.write(tmp_path / "theirs", config, tensors, file), target)
    assert head.source.startswith(f"{source}, from ")
    assert source in repr(head.describe())
    assert not head.training
    assert not any(p.requires_grad for p in head.parameters())
    ours = save_head(head, tmp_path / "ours", base="tiny")
    written = load_file(ours / file)
    raw = {name.replace("layers.0.", "midlayer."): t for name, t in tensors.items()}
    expected = raw if case.startswith("eagle3-") else tensors
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(written[name], tensor, msg=name)
    again = load_head(ours, target)
    assert type(again) is type(head)
    assert again.needs == head.needs
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), parameter)


@pytest.mark.parametrize("case", CASES)
def test_a_missing_tensor_is_named(case: str, tmp_path: Path, target) -> None:
    config, make, file, _ = CASES[case]
    tensors = make()
    name = next(
        n
        for n in tensors
        if n.endswith(("down_proj.weight", "0.linear.weight"))
        or (n.startswith("hydra_lm_head.1.1.w"))
    )
    del tensors[name]
    with pytest.raises(CheckpointError) as caught:
        load_head(files.write(tmp_path, config, tensors, file), target)
    assert name.split(".")[-2] in str(caught.value)
    assert "missing tensor" in str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_an_unexpected_tensor_is_named(case: str, tmp_path: Path, target) -> None:
    config, make, file, _ = CASES[case]
    name = {"mtp-deepseek": f"model.layers.{files.LAYERS}.more", "mtp-qwen3_next": "mtp.more"}
    extra = name.get(case, "more")
    with pytest.raises(CheckpointError, match=f"unexpected tensor {extra}"):
        load_head(files.write(tmp_path, config, make() | {extra: torch.zeros(2)}, file), target)


@pytest.mark.parametrize(
    ("case", "key", "value", "problem"),
    [
        ("eagle", "hidden_size", 64, "the target's hidden size is 32"),
        ("eagle", "vocab_size", 99, "the target's vocabulary is 61"),
        ("eagle", "bias", "no", "must be true or false"),
        ("eagle3", "hidden_size", 64, "the target's hidden size is 32"),
        ("eagle3", "target_hidden_size", 48, "the target's hidden size is 32"),
        ("eagle3", "eagle_aux_hidden_state_layer_ids", [2, 4, 9], "the target has 8 layers"),
        ("eagle3-speculators", "speculators_model_type", "peagle", "is not read here"),
        ("eagle3-speculators", "transformer_layer_config", None, "must be a table"),
        ("eagle3-speculators", "norm_before_residual", None, "its readers disagree"),
        ("medusa", "version", "3", "no such version"),
        ("hydra", "hydra_head_arch", "cross-attn", "is not read"),
        ("mtp-deepseek", "num_hidden_layers", 9, "the target's number of layers is 8"),
        ("dflash", "num_target_layers", 36, "the target's number of layers is 8"),
        ("dflash", "dflash_config", {"mask_token_id": 61}, "the target has 61 tokens"),
        ("dflash", "layer_types", ["sliding_attention"] * 2, "is not read"),
    ],
)
def test_a_config_for_another_target_is_refused(
    case: str, key: str, value: Any, problem: str, tmp_path: Path, target
) -> None:
    config, make, file, _ = CASES[case]
    folder = files.write(tmp_path, config | {key: value}, make(), file)
    with pytest.raises(ConfigError, match=problem) as caught:
        load_head(folder, target)
    assert "config.json" in caught.value.field
    assert caught.value.fix


def test_tensors_for_another_target_are_refused(tmp_path: Path, target) -> None:
    wide = {k: torch.zeros(*(2 * n for n in v.shape)) for k, v in files.medusa().items()}
    folder = files.write(tmp_path, {"medusa_num_heads": 3}, wide, "medusa_lm_head.safetensors")
    with pytest.raises(ConfigError, match=r"medusa_lm_head\.safetensors: 0\.0\.linear\.weight"):
        load_head(folder, target)


def test_more_medusa_heads_than_the_config_says_are_used_and_said(tmp_path, target) -> None:
    config = {"medusa_num_heads": 2}
    folder = files.write(tmp_path, config, files.medusa(4), "medusa_lm_head.safetensors")
    head = load_head(folder, target)
    assert head.num_heads == 4
    assert head.source.endswith("4 heads are stored, config.json says 2")


def test_what_is_no_head_is_refused(tmp_path: Path, target) -> None:
    folder = files.write(tmp_path / "a", files.CONFIG, {"model.norm.weight": torch.ones(32)})
    with pytest.raises(ConfigError, match="no head that is known here"):
        load_head(folder, target)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load_head(tmp_path / "nowhere", target)
    pickled = tmp_path / "b"
    pickled.mkdir()
    (pickled / "config.json").write_text('{"medusa_num_heads": 3}')
    (pickled / "medusa_lm_head.pt").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="only pickled weights"):
        load_head(pickled, target)


@pytest.mark.parametrize("part", ["self_attn.kv_a_proj_with_mqa.weight", "mlp.experts.0.x.weight"])
def test_blocks_that_cannot_run_are_refused_by_name(part: str, tmp_path: Path, target) -> None:
    name = f"model.layers.{files.LAYERS}.{part}"
    folder = files.write(tmp_path, BASE, files.mtp("deepseek") | {name: torch.zeros(2)})
    with pytest.raises(ConfigError, match="no layer here computes"):
        load_head(folder, target)


@pytest.mark.parametrize("missing", ["d2t", "t2d"])
def test_half_a_vocabulary_is_refused(missing: str, tmp_path: Path, target) -> None:
    tensors = files.eagle3()
    del tensors[missing]
    with pytest.raises(CheckpointError, match=f"missing tensor {missing}"):
        load_head(files.write(tmp_path, EAGLE3, tensors), target)


def test_a_vocabulary_that_leads_astray_is_refused(tmp_path: Path, target) -> None:
    tensors = files.eagle3()
    tensors["d2t"][3] += files.VOCAB
    with pytest.raises(CheckpointError, match="leave the 61 tokens"):
        load_head(files.write(tmp_path, EAGLE3, tensors), target)


def test_the_targets_own_embedding_is_not_kept_twice(tmp_path: Path, target) -> None:
    tensors, weight = files.eagle3(), target.embedding.weight.detach()
    copy = tensors | {"embed_tokens.weight": weight.clone()}
    head = load_head(files.write(tmp_path / "copy", EAGLE3, copy), target)
    assert isinstance(head, Eagle3Head)
    assert head.embedding is None
    other = tensors | {"embed_tokens.weight": weight + 1}
    head = load_head(files.write(tmp_path / "other", EAGLE3, other), target)
    assert torch.equal(head.embedding.weight, weight + 1)
    wrong = files.mtp("deepseek")
    wrong[f"model.layers.{files.LAYERS}.shared_head.head.weight"] = weight + 1
    with pytest.raises(CheckpointError, match="differs from the target's head"):
        load_head(files.write(tmp_path / "mtp", BASE, wrong), target)


def test_a_draft_vocabulary_counts_offsets() -> None:
    vocabulary = DraftVocabulary.of(torch.tensor([7, 2, 3]), 9)
    assert vocabulary.d2t.tolist() == [2, 2, 5]
    assert vocabulary.target_ids(torch.arange(3)).tolist() == [2, 3, 7]
    assert vocabulary.problems() == []


def test_weights_are_written_in_the_dtype_asked_for(tmp_path: Path, target) -> None:
    head = load_head(files.write(tmp_path / "a", EAGLE3, files.eagle3()), target)
    folder = save_head(head, tmp_path / "b", dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    assert tensors["fc.weight"].dtype is torch.bfloat16
    assert tensors["d2t"].dtype is torch.int64
