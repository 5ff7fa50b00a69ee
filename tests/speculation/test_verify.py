"""What the verifier decides, whatever the order of siblings, and who is told of rows without
tokens."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.batch import StepPlan
from workbench.draft import Draft
from workbench.metrics import RequestMetrics
from workbench.request import Request, Sequence
from workbench.sample import Sampler
from workbench.sample.largest import takes_largest
from workbench.sampling_params import SamplingParams
from workbench.speculation import Verifier

VOCAB = 7


def sequence_of(**settings: Any) -> Sequence:
    params = SamplingParams(**{"temperature": 0, "max_tokens": 40, **settings})
    request = Request("r", None, (1, 2, 3), params)
    return Sequence(0, request, [1, 2, 3], 3, RequestMetrics(0.0), 5, frozenset(), 43)


def random_draft(source: random.Random, size: int) -> Draft:
    """Return a tree whose siblings differ."""
    tokens: list[int] = []
    parents: list[int] = []
    for node in range(size):
        parent = source.randrange(-1, node)
        taken = {t for t, p in zip(tokens, parents, strict=True) if p == parent}
        free = [token for token in range(VOCAB) if token not in taken]
        if free:
            tokens.append(source.choice(free))
            parents.append(parent)
        else:
            tokens.append(source.randrange(VOCAB))
            parents.append(node - 1)
    return Draft(tuple(tokens), tuple(parents))


def permuted(draft: Draft, source: random.Random) -> Draft:
    """Return the same tree with its nodes in another order, parents first."""
    order: list[int] = []
    open_nodes = [node for node, parent in enumerate(draft.parents) if parent < 0]
    while open_nodes:
        node = open_nodes.pop(source.randrange(len(open_nodes)))
        order.append(node)
        open_nodes += [child for child, parent in enumerate(draft.parents) if parent == node]
    places = {-1: -1} | {node: place for place, node in enumerate(order)}
    tokens = tuple(draft.token_ids[node] for node in order)
    return Draft(tokens, tuple(places[draft.parents[node]] for node in order))


def logits_of(draft: Draft, seed: int) -> torch.Tensor:
    """Return what a target says after the last token and each node: it follows from the path."""
    rows = []
    for node in range(-1, len(draft)):
        path = tuple(draft.token_ids[i] for i in draft.path(node))
        generator = torch.Generator().manual_seed(hash((seed, path)) % 2**40)
        rows.append(torch.randn(VOCAB, generator=generator))
    return torch.stack(rows)


def verdict(draft: Draft, logits: torch.Tensor, **settings: Any) -> tuple[tuple[int, ...], int]:
    """Return the accepted tokens, and the one after them."""
    sequence = sequence_of(**settings)
    plan = StepPlan(1, [sequence], [2], [1 + len(draft)], [0], 0, drafts={0: draft})
    sampled = Verifier()(plan, logits, Sampler())
    return sampled.accepted[0].token_ids, sampled.token_ids[0]


@given(st.integers(0, 10**6), st.integers(1, 14), st.sampled_from([{}, {"temperature": 1.5}]))
def test_the_order_of_siblings_changes_nothing(seed: int, size: int, settings: Any) -> None:
    source = random.Random(seed)
    draft = random_draft(source, size)
    other = permuted(draft, source)
    found = verdict(draft, logits_of(draft, seed), **settings)
    assert found == verdict(other, logits_of(other, seed), **settings)


@given(st.integers(0, 10**6), st.integers(1, 14))
def test_looking_up_the_largest_is_what_the_sampler_does(seed: int, size: int) -> None:
    """`min_p` changes no greedy token, but keeps a row from the short way; so does a bias of 0."""
    draft = random_draft(random.Random(seed), size)
    logits = logits_of(draft, seed)
    assert takes_largest(Sampler(), [sequence_of()])
    assert not takes_largest(Sampler(), [sequence_of(logit_bias={3: 0.0})])
    assert verdict(draft, logits) == verdict(draft, logits, logit_bias={3: 0.0})


class Louder(Sampler):
    """A user's own sampler."""

    def __call__(self, logits: Any, sequences: Any) -> Any:
        return super().__call__(-logits, sequences)


def test_samplers_that_do_more_are_asked() -> None:
    sequences = [sequence_of()]
    assert not takes_largest(Louder(), sequences)
    assert not takes_largest(Sampler([lambda logits, rows: logits]), sequences)
    assert not takes_largest(lambda logits, rows: None, sequences)
    for settings in ({"temperature": 1.0}, {"min_tokens": 3}, {"repetition_penalty": 1.2}):
        assert not takes_largest(Sampler(), [*sequences, sequence_of(**settings)])
    tracked = sequence_of()
    tracked.num_tracked = 0
    assert not takes_largest(Sampler(), [tracked])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_node_without_a_distribution_matters_only_where_the_path_comes(bad: float) -> None:
    draft = Draft((4, 5), (-1, -1))
    logits = torch.zeros(3, VOCAB)
    logits[0, 4] = logits[1, 6] = 1.0
    sequence = sequence_of()
    plan = StepPlan(1, [sequence], [2], [3], [0], 0, drafts={0: draft})
    aside, along = logits.clone(), logits.clone()
    aside[2], along[1] = bad, bad
    sampled = Verifier()(plan, aside, Sampler())
    assert (sampled.accepted[0].nodes, sampled.token_ids[0]) == ((0,), 6)
    assert not sampled.errors
    assert "NaN or +inf" in Verifier()(plan, along, Sampler()).errors[0]


def test_the_proposer_is_told_what_was_said() -> None:
    draft = Draft((4, 5, 6), (-1, -1, 0))
    logits = torch.zeros(4, VOCAB)
    for row, token in enumerate((4, 6, 1, 2)):
        logits[row, token] = 1.0
    sequence, verifier = sequence_of(), Verifier()
    plan = StepPlan(1, [sequence], [2], [4], [0], 0, drafts={0: draft})
    verifier(plan, logits, Sampler())
    verified = verifier.verified[0]
    assert verified.draft is draft
    assert verified.token_ids == (4, 6, 1, 2)
    assert verified.nodes == (0, 2)
