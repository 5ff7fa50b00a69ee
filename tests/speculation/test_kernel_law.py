"""Trees verified with tokens that a sampler draws keep the model's joint law.

Natively the Triton kernel draws them. In the interpreter a row takes it 25 ms, so a CPU asks the
eager sampler, whose tokens the kernel's are (tests/kernels/test_sample.py).
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from sampling import chi_square_p, sequence

from workbench.batch import StepPlan
from workbench.draft import Draft
from workbench.kernels.sample import sample
from workbench.request import Sequence
from workbench.results import SampledTokens
from workbench.sample import Sampler
from workbench.sample.random import stream_keys
from workbench.speculation import Verifier

VOCAB, LENGTH = 4, 3
LOGITS = 1.5 * torch.randn((VOCAB, VOCAB, VOCAB), generator=torch.Generator().manual_seed(3))


class Drawn:
    """Asks the kernel for each row, with the number that the row's seed and place have."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, logits: torch.Tensor, sequences: list[Sequence]) -> SampledTokens:
        rows, device = len(sequences), self.device
        tokens, _ = sample(
            logits,
            temperature=torch.ones(rows, device=device),
            top_k=torch.full((rows,), VOCAB, dtype=torch.int32, device=device),
            top_p=torch.ones(rows, dtype=torch.float64, device=device),
            min_p=torch.zeros(rows, dtype=torch.float64, device=device),
            keys=stream_keys([s.seed for s in sequences]).to(device),
            indices=torch.tensor([s.num_output_tokens for s in sequences], device=device),
            candidates=16,
        )
        return SampledTokens(tokens.tolist())

    def with_probabilities(
        self, logits: torch.Tensor, sequences: list[Sequence]
    ) -> tuple[SampledTokens, torch.Tensor]:
        raise AssertionError("exact match asks for no probabilities")


def tree(token_ids: list[int]) -> Draft:
    """Return a tree of two levels that follows from the tokens before it."""
    a = sum(token_ids) % VOCAB
    b = (a + 1) % VOCAB
    return Draft((a, b, b, a, a), (-1, -1, 0, 0, 1))


def step(running: list[Sequence], sampler: Any, device: str) -> None:
    """Verify a tree of each sequence and append what came of it."""
    drafts = {row: tree(s.token_ids) for row, s in enumerate(running)}
    pairs = []
    for row, draft in drafts.items():
        ids = running[row].token_ids
        paths = [[draft.token_ids[i] for i in draft.path(node)] for node in range(-1, len(draft))]
        pairs += [[*ids, *path][-2:] for path in paths]
    first, second = torch.tensor(pairs).T
    logits = LOGITS[first, second].to(device)
    count, rows = len(running), list(range(len(running)))
    starts = [s.num_tokens - 1 for s in running]
    plan = StepPlan(1, running, starts, [6] * count, rows, 0, drafts=drafts)
    found = Verifier()(plan, logits, sampler)
    for row, one in enumerate(running):
        one.token_ids += [*found.accepted[row].token_ids, found.token_ids[row]]


@pytest.mark.parametrize(
    ("device", "many"), [("cpu", 1200), pytest.param("cuda", 60_000, marks=pytest.mark.gpu)]
)
def test_three_tokens_in_a_row_have_the_joint_law(device: str, many: int) -> None:
    sampler: Any = Drawn(device) if device == "cuda" else Sampler()
    accepted = 0
    cells = list(itertools.product(range(VOCAB), repeat=LENGTH))
    counts = torch.zeros(len(cells))
    for begin in range(0, many, 3000):
        seeds = range(begin, min(many, begin + 3000))
        batch = [sequence(seed, prompt=(1, 2), temperature=1.0) for seed in seeds]
        passes = 0
        while running := [s for s in batch if s.num_output_tokens < LENGTH]:
            step(running, sampler, device)
            passes += len(running)
        accepted += sum(s.num_output_tokens for s in batch) - passes
        for one in batch:
            counts[cells.index(tuple(one.token_ids[2 : 2 + LENGTH]))] += 1
    law = LOGITS.double().softmax(-1)
    wanted = torch.stack([law[1, 2, a] * law[2, a, b] * law[a, b, c] for a, b, c in cells])
    assert chi_square_p(*pooled(counts, wanted * many)) > 0.01
    independent = torch.stack([law[1, 2, a] * law[1, 2, b] * law[1, 2, c] for a, b, c in cells])
    assert chi_square_p(*pooled(counts, independent * many)) < 1e-6  # the test can fail
    assert accepted > 0.4 * many


def pooled(counts: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both with the cells of which fewer than five are expected as one."""
    rare = expected < 5
    parts = [(x[~rare], x[rare].sum().unsqueeze(0)) for x in (counts, expected)]
    found, wanted = (torch.cat(part) for part in parts)
    return (found, wanted) if rare.any() else (found[:-1], wanted[:-1])
