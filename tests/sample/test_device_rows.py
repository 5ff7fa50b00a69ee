"""A backend that draws by itself draws for the sampler: the same tokens, errors and log-probs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from interpreter import kernel_device
from sampling import sequence

from workbench.ops import get_backend
from workbench.sample import Sampler

KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.3},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 5, "top_p": 0.9},
    {"temperature": 0.9, "min_p": 0.1, "logprobs": 2},
    {"temperature": 1.1, "repetition_penalty": 1.7, "logit_bias": {3: 5.0}},
]


def rows(kinds: list[dict[str, Any]], device: str) -> tuple[torch.Tensor, list[Any]]:
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn((len(kinds), 40), generator=generator).to(device) * 3
    made: Any = {"prompt": [1, 2, 3], "output": [4, 5]}
    sequences = [sequence(i, **made, **kind) for i, kind in enumerate(kinds)]
    return logits, sequences


@pytest.mark.parametrize("device", [kernel_device()])
def test_tokens_and_reports_are_the_samplers_own(device: str) -> None:
    draw = get_backend("triton", device).sample  # type: ignore[attr-defined]
    for kinds in (KINDS, KINDS[:3], KINDS[1:2], [KINDS[0]] * 2):
        logits, sequences = rows(kinds, device)
        sampler = Sampler()
        for unread in range(3):
            plain = Sampler().begin(logits, sequences, unread=unread).wait()
            assert sampler.begin(logits, sequences, unread=unread, draw=draw).wait() == plain


@pytest.mark.parametrize("device", [kernel_device()])
def test_a_row_without_a_distribution_says_why(device: str) -> None:
    draw = get_backend("triton", device).sample  # type: ignore[attr-defined]
    logits, sequences = rows(KINDS[:4], device)
    logits[1] = torch.nan
    logits[2] = -torch.inf
    found = Sampler().begin(logits, sequences, draw=draw).wait()
    assert found == Sampler()(logits, sequences)
    assert found.errors.keys() == {1, 2}


def test_top_p_needs_no_host_where_the_backend_draws() -> None:
    logits, sequences = rows(KINDS[2:3], "cpu")

    def draw(logits: torch.Tensor, **_: Any) -> Any:
        return logits.argmax(1), logits

    assert "top_p" in Sampler().begin(logits, sequences).needs_host
    assert Sampler().begin(logits, sequences, draw=draw).needs_host == ""


def test_rows_are_made_anew_when_the_batch_changes() -> None:
    sampler, seen = Sampler(), []

    def draw(logits: torch.Tensor, **given: Any) -> Any:
        seen.append(given)
        return logits.argmax(1), logits

    for kinds in (KINDS[:3], KINDS[1:4], KINDS[1:2]):
        logits, sequences = rows(kinds, "cpu")
        sampler.begin(logits, sequences, draw=draw)
        sampler.begin(logits, sequences, draw=draw, unread=1)
    temperatures = [given["temperature"].tolist() for given in seen[::2]]
    assert temperatures == [pytest.approx(t) for t in ([0, 1.3, 0.7], [1.3, 0.7, 1.0], [1.3])]
    assert [given["indices"].tolist() for given in seen[:2]] == [[2] * 3, [3] * 3]
    assert [given["ranked"] for given in seen] == [True] * 4 + [False] * 2
