"""`adapter_config.json`: PEFT's rules for ranks, scales and modules; the rest refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import AdapterError
from workbench.lora.config import parse_config, read_config

HERE = Path("folder")
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
PATHS = [
    f"model.layers.{layer}.{part}"
    for layer in range(3)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
] + ["lm_head", "model.embed_tokens"]


def parse(**changes: Any) -> Any:
    return parse_config({**PLAIN, **changes}, HERE)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_modules": ["q_proj", "model.layers.1.mlp.up_proj"]},
        {"target_modules": r".*\.(q|o)_proj"},
        {"target_modules": r"layers\.0\..*"},
        {"target_modules": ["up_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": ["up_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "x"]},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["mlp.up_proj"]},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*layers\.0.*"},
        {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]},
    ],
)
def test_modules_are_those_that_peft_matches(changes: dict[str, Any]) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    theirs, ours = LoraConfig(**changes, r=4), parse(**changes)
    if not changes:
        theirs.target_modules = {"q_proj"}
    for path in PATHS:
        found = check_target_module_exists(theirs, path)
        assert ours.targets(path) == (bool(found) and not isinstance(found, _ExcludedModule)), path


@pytest.mark.parametrize("use_rslora", [False, True])
def test_ranks_and_scales_are_peft_s(use_rslora: bool) -> None:
    from peft.utils.other import get_pattern_key

    ranks = {"q_proj": 2, r"layers\.1\.mlp\..*": 16, "^model.layers.0.mlp.up_proj": 3}
    alphas = {"proj": 5, r"layers\.2\..*": 7}
    config = parse(rank_pattern=ranks, alpha_pattern=alphas, use_rslora=use_rslora)
    for path in PATHS:
        rank = ranks.get(get_pattern_key(list(ranks), path), 4)
        alpha = alphas.get(get_pattern_key(list(alphas), path), 8)
        assert config.rank(path) == rank
        assert config.scale(path) == pytest.approx(alpha / (rank**0.5 if use_rslora else rank))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA': only LORA"),
        ({"use_dora": "yes"}, "use_dora='yes': must be true or false"),
        ({"use_dora": True, "lora_bias": True}, "use_dora=True: goes with no lora_bias"),
        ({"target_parameters": [3]}, r"target_parameters=\[3\]: must be a list of names"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"trainable_token_indices": 3}, "trainable_token_indices=3: must be a list of token ids"),
        ({"trainable_token_indices": {"a": [3, 3]}}, "must be lists of token ids, each once"),
        ({"arrow_config": {"k": 1}}, "arrow_config"),
        ({"a_key_of_tomorrow": 3}, "a_key_of_tomorrow=3: is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"r": 0}, "r=0: must be a whole number from 1"),
        ({"r": "4"}, "r='4'"),
        ({"lora_alpha": None}, "lora_alpha=None: must be a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan"),
        ({"rank_pattern": {"q": 0}}, r"rank_pattern\['q'\]=0"),
        ({"rank_pattern": {"(": 2}}, "is no regular expression"),
        ({"rank_pattern": [1]}, "must be a table"),
        ({"target_modules": []}, "names no module"),
        ({"target_modules": "("}, "is no regular expression"),
        ({"target_modules": 5}, "must be a list of names"),
        ({"bias": "some"}, "bias='some'"),
        ({"use_rslora": "yes"}, "use_rslora='yes': must be true or false"),
        ({"layers_to_transform": [-1]}, "must be whole numbers"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(AdapterError, match=rf"adapter_config\.json: .*{says}"):
        parse(**changes)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(AdapterError) as raised:
        parse(r=-1, use_qalora=True, bias=7)
    assert len(raised.value.problems) == 3


def test_unknown_keys_that_say_nothing_pass() -> None:
    assert parse(tomorrow=None, other=False, third=[], fourth={}).r == 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
KEYS = st.sampled_from([*PLAIN, "rank_pattern", "alpha_pattern", "layers_pattern", "bias",
                        "layers_to_transform", "exclude_modules", "modules_to_save",
                        "use_rslora", "init_lora_weights"])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(KEYS, JSON), extra=st.dictionaries(st.text(max_size=6), JSON))
def test_a_fuzzed_config_is_read_or_refused(changes: Any, extra: Any) -> None:
    """Whatever is in it: settings that can be asked about every module, or a typed error."""
    try:
        config = parse_config({**extra, **PLAIN, **changes}, HERE)
    except AdapterError:
        return
    for path in PATHS:
        config.targets(path)
        config.saves(path)
        assert config.rank(path) >= 1
        assert config.scale(path) == config.scale(path)


@settings(max_examples=100, deadline=None)
@given(content=JSON)
def test_any_json_is_read_or_refused(content: Any) -> None:
    try:
        parse_config(content, HERE)
    except AdapterError:
        return
    raise AssertionError("nothing without a rank is an adapter")


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"{" + b" " * (1 << 21)])
def test_files_that_are_no_json(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "adapter_config.json").write_bytes(raw)
    with pytest.raises(AdapterError, match="cannot be read"):
        read_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(PLAIN))
    assert read_config(tmp_path).r == 4
