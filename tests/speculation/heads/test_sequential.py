"""EAGLE-1/2, EAGLE-3 and MTP against their papers, and against every known misreading of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import head_files as files
import head_papers as papers
import pytest
import torch
from torch import Tensor

from workbench.models import DecoderLM
from workbench.speculation.heads import SequentialHead, draft_chain, load_head, new_cache
from workbench.speculation.heads.attention import bare_context

SPLIT = 5  # pairs come in two pieces: what is cached must be what a whole pass makes


def outputs(head: Any, tokens: Tensor, states: Tensor, backend: Any) -> Tensor:
    """Return the head's outputs of a sentence's pairs, committed in two pieces."""
    cache, parts = new_cache(head, 1, max_len=4), []
    for piece in (slice(0, SPLIT), slice(SPLIT, len(tokens))):
        count = len(tokens[piece])
        ctx = cache.extend([0], [count], backend)
        parts.append(head(tokens[piece], head.features(states[piece], ctx), ctx))
        cache.commit([0], [count])
    return torch.cat(parts)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two results agree as float32 computations of one thing do."""
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def load(folder: Path, target: DecoderLM) -> SequentialHead:
    """Load a sequential head."""
    head = load_head(folder, target)
    assert isinstance(head, SequentialHead)
    return head


# EAGLE-1


@pytest.fixture
def eagle(tmp_path: Path) -> Any:
    return files.write(tmp_path / "eagle", files.CONFIG, files.eagle())


def weights(folder: Path, target: DecoderLM) -> dict:
    """Return a checkpoint's tensors as they are, and the target's embedding as `embed`."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors") | {"embed": target.embedding.weight}


def test_eagle_equals_its_paper(eagle: Path, target: DecoderLM, sentence: Any, backend: Any):
    head = load(eagle, target)
    tokens, states = sentence.token_ids[1:], sentence.final[:-1]
    out = outputs(head, tokens, states, backend)
    expected = papers.eagle1(weights(eagle, target), tokens, states, files.CONFIG)
    assert same(out, expected)
    logits = head.logits(out, bare_context(backend))
    assert same(logits, expected @ target.head.weight.T)


@pytest.mark.parametrize("wrong", ["feature first", "no fc bias", "an input norm", "a final norm"])
def test_eagle_tells_misreadings_apart(eagle, target, sentence, backend, wrong: str) -> None:
    tokens, states = sentence.token_ids[1:], sentence.final[:-1]
    out = outputs(load(eagle, target), tokens, states, backend)
    other = papers.eagle1(weights(eagle, target), tokens, states, files.CONFIG, wrong)
    assert not same(out, other)


def test_eagle_pairs_a_state_with_the_token_after_it(eagle, target, sentence, backend) -> None:
    """The mutant feeds token i beside the state of token i."""
    head, states = load(eagle, target), sentence.final[:-1]
    right = outputs(head, sentence.token_ids[1:], states, backend)
    unshifted = papers.eagle1(weights(eagle, target), sentence.token_ids[:-1], states, files.CONFIG)
    assert not same(right, unshifted)


def test_eagle_without_a_bias_key_has_a_bias(tmp_path, target) -> None:
    tensors = files.eagle(bias=False)
    with pytest.raises(Exception, match=r"missing tensor fc\.bias"):
        load_head(files.write(tmp_path / "a", files.CONFIG, tensors), target)
    head = load_head(files.write(tmp_path / "b", files.CONFIG | {"bias": False}, tensors), target)
    assert head.fc.bias is None
    stated = files.write(tmp_path / "c", files.CONFIG | {"bias": False}, files.eagle())
    with pytest.raises(Exception, match=r"unexpected tensor fc\.bias"):
        load_head(stated, target)


# EAGLE-3


FLAGS = [
    frozenset(),
    frozenset({"norm_before_residual"}),
    frozenset({"norm_before_fc"}),
    frozenset({"fc_norm", "norm_output"}),
]


def eagle3_config(flags: frozenset[str], drafts: int = 20) -> dict:
    """The raw layout's config."""
    return files.CONFIG | {"draft_vocab_size": drafts} | dict.fromkeys(flags, True)


def eagle3_states(sentence: Any) -> list[Tensor]:
    """What EAGLE-3 reads: transformers' hidden states 2, L // 2 and L - 3, of all but the last."""
    layers = files.LAYERS
    return [sentence.hidden_states[i][:-1] for i in (2, layers // 2, layers - 3)]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda f: "+".join(sorted(f)) or "plain")
def test_eagle3_equals_its_paper(tmp_path, target, sentence, backend, flags) -> None:
    folder = files.write(tmp_path, eagle3_config(flags), files.eagle3(flags=flags))
    head, w = load(folder, target), weights(folder, target)
    eps, states = files.CONFIG["rms_norm_eps"], eagle3_states(sentence)
    tokens = sentence.token_ids[1:]
    out = outputs(head, tokens, torch.cat(states, -1), backend)
    g = papers.eagle3_states(w, states, flags, eps)
    expected = papers.eagle3(w, tokens, g, files.CONFIG, flags)
    assert same(out, expected)
    normed = papers.rms(expected, w["norm.weight"], eps)
    ctx = bare_context(backend)
    assert same(head.logits(out, ctx), normed @ w["lm_head.weight"].T)
    assert same(head.carry(out, ctx), normed if "norm_output" in flags else expected)


@pytest.mark.parametrize("wrong", ["state first", "no input_layernorm"])
def test_eagle3_tells_misreadings_apart(tmp_path, target, sentence, backend, wrong) -> None:
    folder = files.write(tmp_path, eagle3_config(frozenset()), files.eagle3())
    w, states, tokens = weights(folder, target), eagle3_states(sentence), sentence.token_ids[1:]
    out = outputs(load(folder, target), tokens, torch.cat(states, -1), backend)
    g = papers.eagle3_states(w, states, set(), files.CONFIG["rms_norm_eps"])
    assert not same(out, papers.eagle3(w, tokens, g, files.CONFIG, set(), wrong))
    reversed_g = papers.eagle3_states(w, states[::-1], set(), files.CONFIG["rms_norm_eps"])
    assert not same(out, papers.eagle3(w, tokens, reversed_g, files.CONFIG, set()))
    normed = papers.eagle3(w, tokens, g, files.CONFIG, {"norm_before_residual"})
    assert not same(out, normed)


@pytest.mark.parametrize("flags", [frozenset(), frozenset({"norm_output"})])
def test_eagle3_feeds_its_output_back(tmp_path, target, sentence, backend, flags) -> None:
    """A drafted chain is the paper's, whole pass by whole pass; the other feedback is not."""
    folder = files.write(tmp_path, eagle3_config(flags), files.eagle3(flags=flags))
    head, w = load(folder, target), weights(folder, target)
    eps, states = files.CONFIG["rms_norm_eps"], eagle3_states(sentence)
    tokens, k = sentence.token_ids[1:], 4
    cache = new_cache(head, 1)
    ctx = cache.extend([0], [len(tokens)], backend)
    out = head(tokens, head.features(torch.cat(states, -1), ctx), ctx)
    cache.commit([0], [len(tokens)])
    chain = draft_chain(head, cache, [0], out[-1:], k, backend)

    def paper_chain(feeds_normed: bool) -> tuple[list[int], Tensor]:
        g, ids, drafted, rows = papers.eagle3_states(w, states, flags, eps), tokens, [], []
        for _ in range(k):
            last = papers.eagle3(w, ids, g, files.CONFIG, flags)[-1]
            normed = papers.rms(last, w["norm.weight"], eps)
            rows.append(normed @ w["lm_head.weight"].T)
            best = int(rows[-1].argmax())
            drafted.append(best + int(w["d2t"][best]))
            ids = torch.cat((ids, torch.tensor(drafted[-1:])))
            g = torch.cat((g, (normed if feeds_normed else last)[None]))
        return drafted, torch.stack(rows)

    drafted, logits = paper_chain("norm_output" in flags)
    assert chain.token_ids[0].tolist() == drafted
    assert same(chain.logits[0], logits)
    assert not same(chain.logits[0], paper_chain("norm_output" not in flags)[1])


def test_d2t_holds_offsets(tmp_path, target, sentence, backend) -> None:
    tensors = files.eagle3()
    folder = files.write(tmp_path / "offsets", eagle3_config(frozenset()), tensors)
    head = load(folder, target)
    ids = torch.arange(20)
    assert torch.equal(head.target_ids(ids), tensors["t2d"].nonzero()[:, 0])
    assert not torch.equal(head.target_ids(ids), tensors["d2t"])  # the mutant
    absolute = tensors | {"d2t": tensors["d2t"] + ids}
    folder = files.write(tmp_path / "absolute", eagle3_config(frozenset()), absolute)
    with pytest.raises(Exception, match="d2t holds target ids"):
        load_head(folder, target)


def test_all_of_the_vocabulary_needs_no_tables(tmp_path, target) -> None:
    config = files.CONFIG | {"draft_vocab_size": files.VOCAB}
    head = load(files.write(tmp_path, config, files.eagle3(drafts=None)), target)
    assert head.vocabulary is None
    assert torch.equal(head.target_ids(torch.arange(9)), torch.arange(9))


# MTP


@pytest.mark.parametrize("layout", list(files.MTP_NAMES))
def test_mtp_equals_its_paper(tmp_path, target, sentence, backend, layout: str) -> None:
    head, w, names = mtp(tmp_path, target, layout)
    tokens, states = sentence.token_ids[1:], sentence.final[:-1]
    out = outputs(head, tokens, states, backend)
    expected = papers.mtp(w, names, tokens, states, files.CONFIG)
    assert same(out, expected)
    normed = papers.rms(expected, w[names["norm"]], files.CONFIG["rms_norm_eps"])
    ctx = bare_context(backend)
    assert same(head.logits(out, ctx), normed @ target.head.weight.T)
    assert same(head.carry(out, ctx), expected if layout == "deepseek" else normed)


@pytest.mark.parametrize("layout", list(files.MTP_NAMES))
def test_mtp_tells_misreadings_apart(tmp_path, target, sentence, backend, layout: str) -> None:
    head, w, names = mtp(tmp_path, target, layout)
    tokens, states = sentence.token_ids[1:], sentence.final[:-1]
    out = outputs(head, tokens, states, backend)
    wrongs = ["state first", "no hnorm"]
    wrongs += ["embedding kept at position 0"] if names["zero_first"] else []
    for wrong in wrongs:
        assert not same(out, papers.mtp(w, names, tokens, states, files.CONFIG, wrong)), wrong
    flipped = names | {"zero_first": not names["zero_first"]}
    assert not same(out, papers.mtp(w, flipped, tokens, states, files.CONFIG))
    if layout == "qwen3_next":  # stored around 0: the mutant takes them as they are
        stored = {k: v - 1 if "norm" in k else v for k, v in w.items()}
        assert not same(out, papers.mtp(stored, names, tokens, states, files.CONFIG))


def mtp(folder: Path, target: DecoderLM, layout: str) -> tuple[SequentialHead, dict, dict]:
    """Write and load an MTP layer; return it, its tensors as they are meant, and its names."""
    tensors, shape = files.mtp(layout), files.CONFIG | {"num_hidden_layers": files.LAYERS}
    config = shape | {"num_nextn_predict_layers": 1}
    if layout == "speculators":
        config = {"speculators_model_type": "mtp", "transformer_layer_config": shape}
    else:  # the base model's own tensors lie beside them
        tensors["model.norm.weight"] = files.norm()
    head = load(files.write(folder, config, tensors), target)
    meant = weights(folder, target)
    if layout == "qwen3_next":
        meant = {k: v + 1 if "norm" in k else v for k, v in meant.items()}
    return head, meant, files.MTP_NAMES[layout]
