"""Which of the target's states each head reads, against transformers' hidden states."""

from __future__ import annotations

from typing import Any

import head_files as files
import pytest
import torch
from torch import Tensor

from workbench.batch import ForwardContext
from workbench.errors import ConfigError
from workbench.layers import probe
from workbench.models import DecoderLM
from workbench.ops import get_backend
from workbench.speculation.heads import load_head
from workbench.speculation.heads.dflash import default_target_layers
from workbench.speculation.heads.target import stream_point


def read(target: DecoderLM, head: Any, token_ids: Tensor) -> Tensor:
    """Return the states a head needs, side by side, from one forward pass of its target."""
    ctx = ForwardContext.without_cache([len(token_ids)], get_backend("reference", "cpu"))
    with torch.no_grad(), probe(target, head.needs) as seen:
        target(token_ids, ctx)
    return torch.cat([seen[point] for point in head.needs], -1)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two results agree as float32 computations of one thing do."""
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def eagle3(target, folder, **keys):
    """Load an EAGLE-3 head whose config states `keys`."""
    config = files.CONFIG | {"draft_vocab_size": 20} | keys
    return load_head(files.write(folder, config, files.eagle3()), target)


def of_layers(sentence: Any, *indices: int) -> Tensor:
    """Transformers' hidden states of these indices, side by side."""
    return torch.cat([sentence.hidden_states[i] for i in indices], -1)


def test_eagle3_reads_the_inputs_of_layers(tmp_path, target, sentence) -> None:
    layers = files.LAYERS
    head = eagle3(target, tmp_path / "default")
    states = read(target, head, sentence.token_ids)
    assert same(states, of_layers(sentence, 2, layers // 2, layers - 3))
    for off in (-1, 1):  # the mutants: one layer too early, or taken as outputs
        other = of_layers(sentence, 2 + off, layers // 2 + off, layers - 3 + off)
        assert not same(states, other)
    ids = [0, 3, 8]
    head = eagle3(target, tmp_path / "own", eagle_aux_hidden_state_layer_ids=ids)
    expected = [sentence.hidden_states[0], sentence.hidden_states[3]]
    states = read(target, head, sentence.token_ids)
    assert same(states[:, : 2 * files.H], torch.cat(expected, -1))
    assert not same(states[:, 2 * files.H :], sentence.final)  # before the final norm
    head = eagle3(
        target, tmp_path / "nested", eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}
    )
    assert same(read(target, head, sentence.token_ids), of_layers(sentence, 1, 2, 3))


def test_dflash_reads_the_outputs_of_layers(tmp_path, target, sentence) -> None:
    own = {"mask_token_id": 3, "target_layer_ids": [1, 5]}
    config = files.CONFIG | {"num_hidden_layers": 2, "dflash_config": own}
    folder = files.write(tmp_path / "a", config, files.dflash(num_states=2))
    states = read(target, load_head(folder, target), sentence.token_ids)
    assert same(states, of_layers(sentence, 2, 6))
    assert not same(states, of_layers(sentence, 1, 5))  # the mutant
    speculators = {
        "speculators_model_type": "dflash",
        "transformer_layer_config": files.CONFIG | {"num_hidden_layers": 2},
        "aux_hidden_state_layer_ids": [2, 6],
        "mask_token_id": 3,
        "draft_vocab_size": files.VOCAB,
    }
    folder = files.write(tmp_path / "b", speculators, files.dflash(num_states=2))
    assert same(read(target, load_head(folder, target), sentence.token_ids), states)


@pytest.mark.parametrize("kind", ["eagle", "medusa", "mtp"])
def test_the_others_read_what_the_targets_head_sees(tmp_path, target, sentence, kind) -> None:
    config, tensors = {
        "eagle": (files.CONFIG, files.eagle()),
        "medusa": ({"medusa_num_heads": 3}, files.medusa()),
        "mtp": (files.CONFIG | {"num_hidden_layers": files.LAYERS}, files.mtp("deepseek")),
    }[kind]
    head = load_head(files.write(tmp_path, config, tensors), target)
    states = read(target, head, sentence.token_ids)
    assert same(states, sentence.final)
    # The mutant takes the stream before the norm.
    ctx = ForwardContext.without_cache([12], get_backend("reference", "cpu"))
    with torch.no_grad(), probe(target, [f"layers.{files.LAYERS - 1}"]) as seen:
        target(sentence.token_ids, ctx)
    assert not same(states, seen[f"layers.{files.LAYERS - 1}"])


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="the target has 8 layers"):
        stream_point(9, 8)


def test_dflashs_usual_layers() -> None:
    assert default_target_layers(36, 5) == (1, 9, 17, 25, 33)  # as Qwen3-8B's config states
    assert default_target_layers(8, 1) == (4,)
