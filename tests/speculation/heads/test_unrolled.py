"""Drafting from every position at once is drafting from each by itself."""

from __future__ import annotations

import head_files as files
import pytest
import torch

from workbench.batch import ForwardContext
from workbench.ops import get_backend
from workbench.speculation.heads import commit, draft_chain, load_head, new_cache
from workbench.speculation.heads.unrolled import UnrolledBackend, WindowsBackend

BACKEND = get_backend("reference", "cpu")


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "mtp"])
def test_each_slot_drafts_as_it_would_by_itself(tmp_path, target, sentence, kind: str) -> None:
    config, tensors = {
        "eagle": (files.CONFIG, files.eagle()),
        "eagle3": (files.CONFIG | {"draft_vocab_size": 20}, files.eagle3()),
        "mtp": (files.CONFIG | {"num_hidden_layers": files.LAYERS}, files.mtp("speculators")),
    }[kind]
    if kind == "mtp":
        config = {"speculators_model_type": "mtp", "transformer_layer_config": config}
    head = load_head(files.write(tmp_path, config, tensors), target)
    layers = (2, 4, 5) if kind == "eagle3" else ()
    states = torch.cat([sentence.hidden_states[i][:-1] for i in layers] or [sentence.final[:-1]], 1)
    tokens, depth = sentence.token_ids[1:], 4
    n = len(tokens)
    backend, rows, features, ids = UnrolledBackend(BACKEND, n), [], None, tokens
    with torch.no_grad():
        for step in range(depth):
            ctx = backend.context(1, torch.device("cpu"), ahead=step)
            features = head.features(states, ctx) if features is None else features
            out = head(ids, features, ctx)
            rows.append(head.logits(out, ctx))
            ids, features = head.target_ids(rows[-1].argmax(-1)), head.carry(out, ctx)
    for t in range(n):
        cache = new_cache(head, 1)
        last = commit(head, cache, [0], tokens[: t + 1], states[: t + 1], [t + 1], BACKEND)
        chain = draft_chain(head, cache, [0], last, depth, BACKEND)
        unrolled = torch.stack([row[t] for row in rows])
        torch.testing.assert_close(unrolled, chain.logits[0], rtol=1e-4, atol=1e-4)


def test_windows_are_texts_of_their_own(target) -> None:
    ids = torch.randint(0, files.VOCAB, (3, 7))
    windows = WindowsBackend(BACKEND, 7)
    packed = ForwardContext.without_cache([7] * 3, BACKEND)
    with torch.no_grad():
        ours = target(ids.flatten(), windows.context(3, torch.device("cpu")))
        torch.testing.assert_close(ours, target(ids.flatten(), packed), rtol=1e-4, atol=1e-5)
