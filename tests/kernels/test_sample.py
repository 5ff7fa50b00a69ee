"""Sampling on the device: the eager sampler's tokens, the exact law, counts, and broken rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sampling import chi_square_p, law, sequence

from workbench.kernels.sample import INVALID, Penalties, plan, sample
from workbench.ops import get_backend
from workbench.request import Sequence
from workbench.sample import Sampler
from workbench.sample.filters import ONE
from workbench.sample.random import stream_keys
from workbench.sample.sampler import INVALID as EAGER_INVALID

KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.3, "min_p": 0.1},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 50, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 3.0, "top_p": 0.99},  # more than the candidates: bisected for
    {"temperature": 2.0, "top_k": 200},
]


def rows_of(sequences: list[Sequence], vocab: int, device: torch.device) -> dict[str, Any]:
    """Return the kernel's parameters of sequences, as the decode graph fills them."""
    params = [s.request.params for s in sequences]

    def column(values: list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return {
        "temperature": column([p.temperature for p in params], torch.float32),
        "top_k": column([min(p.top_k or vocab, vocab) for p in params], torch.int32),
        "top_p": column([p.top_p for p in params], torch.float64),
        "min_p": column([p.min_p for p in params], torch.float64),
        "keys": stream_keys([s.seed for s in sequences]).to(device),
        "indices": column([s.num_output_tokens for s in sequences], torch.int64),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_tokens_are_the_eager_samplers(dtype: torch.dtype, device: torch.device) -> None:
    vocab = 210
    generator = torch.Generator(device).manual_seed(5)
    for trial in range(20 if device.type == "cuda" else 1):
        sequences = [
            sequence(seed=31 * trial + i, num_output=trial, **kind) for i, kind in enumerate(KINDS)
        ]
        logits = torch.randn((len(KINDS), vocab), generator=generator, device=device) * 3
        logits = logits.to(dtype)
        tokens, logprobs = sample(logits, **rows_of(sequences, vocab, device))
        assert tokens.tolist() == Sampler()(logits, sequences).token_ids
        wanted = logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(logprobs, wanted, rtol=1e-6, atol=5e-6)


def test_a_token_does_not_depend_on_the_batch_nor_on_the_chunks(device: torch.device) -> None:
    vocab, kinds = 70, [KINDS[i] for i in (1, 3, 6)]
    sequences = [sequence(seed=i, **kind) for i, kind in enumerate(kinds)]
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn((len(kinds), vocab), generator=generator, device=device)
    rows = rows_of(sequences, vocab, device)
    together, _ = sample(logits, **rows)
    for row in range(len(kinds)):
        alone = {name: value[row : row + 1] for name, value in rows.items()}
        config = {"BLOCK": 32, "num_warps": 2}
        assert sample(logits[row : row + 1], **alone, config=config)[0][0] == together[row]


@pytest.mark.parametrize("kind", [1, 4, 5], ids=["plain", "top-p", "all filters"])
def test_draws_follow_the_exact_law(kind: int, device: torch.device) -> None:
    """Chi-square against probabilities in plain Python; a fixed seed, so no run differs."""
    logits, draws = [0.0, 1.0, 2.0, -1.0, 0.5, 1.5, -3.0, 0.2], 120
    running = sequence(seed=2, **KINDS[kind])
    params = running.request.params
    wanted, margin = law(logits, params.temperature, params.top_k, params.top_p, params.min_p)
    assert margin > 1e-6
    rows = rows_of([running] * draws, len(logits), device)
    rows["indices"] = torch.arange(draws, device=device)
    tokens, _ = sample(torch.tensor([logits] * draws, device=device), **rows, candidates=16)
    counts = torch.bincount(tokens.cpu(), minlength=len(logits))
    assert chi_square_p(counts, torch.tensor(wanted) * draws) > 0.01
    steeper = torch.tensor(wanted) ** 3
    assert chi_square_p(counts, steeper / steeper.sum() * draws) < 0.01  # the test can fail


def test_penalties_are_the_eager_ones_and_the_drawn_token_is_counted(device: torch.device) -> None:
    vocab, steps = 40, 4
    kinds = [
        {"temperature": 0.0, "repetition_penalty": 1.7},
        {"temperature": 1.0, "presence_penalty": 0.6, "frequency_penalty": 0.9},
        {"temperature": 0.8, "top_k": 7},
    ]
    prompts = [[3, 3, 8], [1, 2], [5]]
    sequences = [sequence(seed=i, prompt=prompts[i], **kind) for i, kind in enumerate(kinds)]
    params = [s.request.params for s in sequences]
    seen = torch.zeros((4, vocab), dtype=torch.int32, device=device)
    slots = torch.tensor([2, 0, -1], device=device)
    for slot, prompt in ((2, prompts[0]), (0, prompts[1])):
        seen[slot, prompt] = 1
    penalties = Penalties(
        slots,
        seen,
        *(
            torch.tensor([getattr(p, f"{name}_penalty") for p in params], device=device).float()
            for name in ("repetition", "presence", "frequency")
        ),
    )
    generator = torch.Generator(device).manual_seed(1)
    for _ in range(steps):
        logits = torch.randn((3, vocab), generator=generator, device=device)
        rows = rows_of(sequences, vocab, device)
        tokens, logprobs, _ = sample(logits, **rows, penalties=penalties)
        assert tokens.tolist() == Sampler()(logits, sequences).token_ids
        own = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(logprobs, own, rtol=1e-6, atol=5e-6)
        for running, token in zip(sequences, tokens.tolist(), strict=True):
            running.token_ids.append(token)
    for slot, running in ((2, sequences[0]), (0, sequences[1])):
        output = running.token_ids[running.num_prompt_tokens :]
        wanted = [
            1 + output.count(token) if token in running.token_ids else 0 for token in range(vocab)
        ]
        assert seen[slot].tolist() == wanted
    assert not seen[[1, 3]].any()


def test_a_row_without_a_distribution_is_told_and_its_neighbours_are_not_touched(
    device: torch.device,
) -> None:
    logits = torch.zeros((4, 50), device=device)
    logits[0, 3], logits[1, 7], logits[2] = torch.nan, torch.inf, -torch.inf
    sequences = [sequence(seed=i, **KINDS[i]) for i in range(4)]
    tokens, logprobs = sample(logits, **rows_of(sequences, 50, device))
    assert tokens[:3].tolist() == [INVALID] * 3 == [EAGER_INVALID] * 3
    assert logprobs[:3].isnan().all()
    assert tokens[3].tolist() == Sampler()(logits[3:], sequences[3:]).token_ids[0]


def test_launches_that_no_row_needs_are_left_out(device: torch.device) -> None:
    logits = torch.randn((2, 64), device=device)
    greedy = rows_of([sequence(temperature=0.0)] * 2, 64, device)
    assert len(plan(logits, **greedy).launches) == 4
    few = plan(logits, **greedy, sampled=False, ranked=False)
    assert len(few.launches) == 3
    assert few.run()[0].tolist() == logits.argmax(-1).tolist()


def test_the_backend_writes_where_it_is_told(device: torch.device) -> None:
    backend = get_backend("triton", device)
    logits = torch.randn((2, 64), device=device)
    rows = rows_of([sequence(seed=1), sequence(seed=2)], 64, device)
    tokens = torch.zeros(2, dtype=torch.int64, device=device)
    logprobs = torch.zeros(2, device=device)
    given = backend.sample(logits, **rows, tokens=tokens, logprobs=logprobs)
    assert given[0] is tokens
    assert given[1] is logprobs
    assert tokens.tolist() == sample(logits, **rows)[0].tolist()


def test_the_constants_are_the_eager_samplers() -> None:
    from workbench.kernels import sample_math
    from workbench.sample import random

    assert sample_math._ONE.value == ONE
    for name in ("GOLDEN", "MIX_1", "MIX_2"):
        assert getattr(sample_math, f"_{name}").value == getattr(random, name) % 2**64


@pytest.mark.gpu
def test_a_captured_graph_draws_anew_as_the_index_counts_up() -> None:
    device, vocab = torch.device("cuda"), 128256
    sequences = [sequence(seed=i, **kind) for i, kind in enumerate(KINDS)]
    rows = rows_of(sequences, vocab, device)
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn((len(KINDS), vocab), generator=generator, device=device) * 3
    sample(logits, **rows)  # compiled
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, _ = sample(logits, **rows)
        rows["indices"].add_(1)
    rows["indices"].zero_()
    for step in range(5):
        graph.replay()
        assert tokens.tolist() == Sampler()(logits, sequences).token_ids, step
        for running in sequences:
            running.token_ids.append(0)
