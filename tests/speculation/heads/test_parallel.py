"""Medusa, Hydra and DFlash against their papers, and against every known misreading of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import head_files as files
import head_papers as papers
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from workbench.models import DecoderLM
from workbench.speculation.heads import (
    DFlashHead,
    HeadCache,
    HydraHead,
    MedusaHead,
    fill_static,
    load_head,
    static_tree,
)
from workbench.speculation.heads.attention import bare_context

PATHS = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 1, 0)]


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two results agree as float32 computations of one thing do."""
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def medusa(folder: Path, target: DecoderLM, num_layers: int, **kind: Any) -> MedusaHead:
    """Write and load three Medusa heads."""
    config = {"medusa_num_heads": 3, "medusa_num_layers": num_layers}
    tensors = files.medusa(3, num_layers, **kind)
    head = load_head(files.write(folder, config, tensors, "medusa_lm_head.safetensors"), target)
    assert isinstance(head, MedusaHead)
    return head


@pytest.mark.parametrize(("layers", "aliased"), [(1, True), (3, True), (3, False)])
def test_medusa_equals_its_paper(tmp_path, target, sentence, backend, layers, aliased) -> None:
    head = medusa(tmp_path, target, layers, aliased=aliased)
    w = load_file(tmp_path / "medusa_lm_head.safetensors")
    out = head(sentence.final, bare_context(backend))
    assert same(out, papers.medusa(w, sentence.final, 3, layers))
    assert head.shared_blocks == (aliased and layers > 1)
    wrongs = ["no residual"]
    wrongs += ["one block"] if layers > 1 else []
    wrongs += ["always the first block"] if not aliased else []
    for wrong in wrongs:
        assert not same(out, papers.medusa(w, sentence.final, 3, layers, wrong)), wrong
    assert not same(out, papers.medusa(w, sentence.hidden_states[-2], 3, layers))


def test_medusa_repeats_a_block_that_was_stored_once(tmp_path, target, sentence, backend) -> None:
    """safetensors' `save_model` writes shared tensors once: their other names are missing."""
    tensors = files.medusa(2, 3)
    once = {name: t for name, t in tensors.items() if ".linear." not in name or ".0.l" in name}
    config = {"medusa_num_heads": 2, "medusa_num_layers": 3}
    head = load_head(files.write(tmp_path, config, once, "medusa_lm_head.safetensors"), target)
    out = head(sentence.final, bare_context(backend))
    assert same(out, papers.medusa(tensors, sentence.final, 2, 3))


def test_medusa_two_ends_in_the_targets_matrix(tmp_path, target, sentence, backend) -> None:
    tensors = {k: v for k, v in files.medusa(2).items() if "linear" in k}
    config = {"medusa_num_heads": 2, "version": "2"}
    folder = files.write(tmp_path, config, tensors, "medusa_lm_head.safetensors")
    out = load_head(folder, target)(sentence.final, bare_context(backend))
    full = tensors | {f"{i}.1.weight": target.head.weight for i in range(2)}
    assert same(out, papers.medusa(full, sentence.final, 2, 1))


def test_medusa_inside_a_whole_model(tmp_path, target, sentence, backend) -> None:
    tensors = files.medusa(2)
    inside = {f"medusa_head.{k}": v for k, v in tensors.items()} | {"model.x": torch.zeros(1)}
    head = load_head(files.write(tmp_path, {"medusa_num_heads": 2}, inside), target)
    out = head(sentence.final, bare_context(backend))
    assert same(out, papers.medusa(tensors, sentence.final, 2, 1))


def test_medusa_fills_a_tree(tmp_path, target, sentence, backend) -> None:
    head = medusa(tmp_path, target, 1)
    logits = head(sentence.final[-2:], bare_context(backend))
    drafted = fill_static(static_tree(PATHS), logits)
    ranked = logits.log_softmax(-1).sort(-1, descending=True)
    for row in range(2):
        for node, path in enumerate(PATHS):
            right = [int(ranked.indices[i, row, rank]) for i, rank in enumerate(path)]
            assert drafted.token_ids[row, node] == right[-1]
            score = sum(float(ranked.values[i, row, rank]) for i, rank in enumerate(path))
            assert abs(float(drafted.scores[row, node]) - score) < 1e-4


def hydra(folder: Path, target: DecoderLM, *, prefix: bool) -> tuple[HydraHead, dict]:
    """Write and load three Hydra heads of two blocks."""
    config = {
        "hydra_num_heads": 3,
        "hydra_num_layers": 2,
        "hydra_head_arch": "prefix-mlp" if prefix else "mlp",
        "grounded_heads": True,
        "hidden_state_offset": 0,
    }
    tensors = files.hydra(prefix=prefix)
    written = tensors | {"input_embed_fn.weight": target.embedding.weight.detach().clone()}
    head = load_head(files.write(folder, config, written, "hydra_lm_head.safetensors"), target)
    assert isinstance(head, HydraHead)
    return head, tensors


@pytest.mark.parametrize("prefix", [False, True])
def test_hydra_equals_its_paper(tmp_path, target, sentence, backend, prefix: bool) -> None:
    head, w = hydra(tmp_path, target, prefix=prefix)
    embed = target.embedding.weight
    states, c = sentence.final, files.CONFIG
    seen, expected = states, states
    if prefix:
        cache, parts = HeadCache(head.prefix_config, 1, max_len=4), []
        for piece in (states[:7], states[7:]):
            parts.append(head.prefix(piece, cache.extend([0], [len(piece)], backend)))
            cache.commit([0], [len(piece)])
        seen, expected = torch.cat(parts), papers.hydra_prefix(w, states, c)
        assert not same(seen, papers.hydra_prefix(w, states, c, "no final norm"))
    assert same(seen, expected)
    latest = torch.tensor([4, 9])
    tree = head.draft(seen[-2:], latest, static_tree(PATHS), backend)
    for row in range(2):
        drafted: dict[tuple[int, ...], list[int]] = {(): [int(latest[row])]}
        for node, path in enumerate(PATHS):
            before = drafted[path[:-1]]
            logits = papers.hydra(w, expected[row - 2], before, embed, 2)
            ranked = logits.log_softmax(-1).sort(descending=True)
            assert tree.token_ids[row, node] == ranked.indices[path[-1]]
            own = tree.scores[row, node]
            own = own if len(path) == 1 else own - tree.scores[row, PATHS.index(path[:-1])]
            assert abs(float(own - ranked.values[path[-1]])) < 1e-4
            drafted[path] = [*before, int(ranked.indices[path[-1]])]


@pytest.mark.parametrize(
    "wrong", ["tokens newest first", "state last", "no res_connection", "head without bias"]
)
def test_hydra_tells_misreadings_apart(tmp_path, target, sentence, backend, wrong: str) -> None:
    head, w = hydra(tmp_path, target, prefix=False)
    tokens, state = [3, 11, 7], sentence.final[4]
    embed = target.embedding.weight
    seen = torch.cat([state, *(embed[t] for t in tokens)])[None]
    out = head.logits(2, seen, bare_context(backend))[0]
    assert same(out, papers.hydra(w, state, tokens, embed, 2))
    assert not same(out, papers.hydra(w, state, tokens, embed, 2, wrong))


def test_hydras_weights_sit_at_odd_places(tmp_path, target) -> None:
    tensors = files.hydra(1, 1)
    even = {name.replace("hydra_mlp.0.1", "hydra_mlp.0.0"): t for name, t in tensors.items()}
    config = {"hydra_num_heads": 1, "hydra_num_layers": 1}
    folder = files.write(tmp_path, config, even, "hydra_lm_head.safetensors")
    with pytest.raises(Exception, match=r"missing tensor hydra_mlp\.0\.1\.linear\.weight"):
        load_head(folder, target)


DFLASH = files.CONFIG | {
    "num_hidden_layers": 2,
    "num_target_layers": files.LAYERS,
    "block_size": 5,
    "dflash_config": {"mask_token_id": 60, "target_layer_ids": [1, 3, 5]},
}


def dflash_context(sentence: Any, shift: int = 1) -> Tensor:
    """The outputs of layers 1, 3 and 5: transformers' hidden states one further."""
    return torch.cat([sentence.hidden_states[i + shift] for i in (1, 3, 5)], -1)


def test_dflash_equals_its_paper(tmp_path, target, sentence, backend) -> None:
    head = load_head(files.write(tmp_path, DFLASH, files.dflash()), target)
    assert isinstance(head, DFlashHead)
    w = load_file(tmp_path / "model.safetensors") | {"embed": target.embedding.weight}
    context, latest = dflash_context(sentence), torch.tensor([17])
    cache = HeadCache(head.config, 1, max_len=4)
    for piece in (context[:7], context[7:]):
        head.commit(cache, [0], piece, [len(piece)], backend)
    first = head.draft(cache, [0], latest, backend)
    again = head.draft(cache, [0], latest, backend)  # a draft leaves nothing behind
    block = torch.tensor([17, 60, 60, 60, 60])

    def logits(states: Tensor, wrong: str = "") -> Tensor:
        out = papers.dflash(w, states, block, files.CONFIG, 2, wrong)
        return out[1:] @ target.head.weight.T

    assert same(first.logits[0], logits(context))
    assert torch.equal(first.logits, again.logits)
    assert first.token_ids[0].tolist() == logits(context).argmax(-1).tolist()
    for wrong in (
        "no hidden_norm",
        "a causal block",
        "k_norm on the block alone",
        "block one too early",
    ):
        assert not same(first.logits[0], logits(context, wrong)), wrong
    assert not same(first.logits[0], logits(dflash_context(sentence, 0)))  # ids as inputs
    assert not same(first.logits[0], logits(context[:-1]))
