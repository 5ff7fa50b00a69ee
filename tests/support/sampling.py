"""What the sampler's tests share: sequences, and the definition of every filter in plain Python.

`law` is written from the definitions alone, in float64 lists, and shares nothing with the code
under test: not its order of work, not its arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Tokens
from typing import Any

import torch

from workbench.engine.admission import tracked_by
from workbench.metrics import RequestMetrics
from workbench.request import Request, Sequence
from workbench.sampling_params import SamplingParams


def sequence(
    seed: int = 0,
    num_output: int = 0,
    name: str = "r",
    *,
    prompt: Tokens[int] = (1,),
    output: Tokens[int] = (),
    stop_ids: Tokens[int] = (),
    **params: Any,
) -> Sequence:
    """Return a running sequence of these parameters that has `output`, or `num_output` tokens."""
    request = Request(name, None, tuple(prompt), SamplingParams(**params))
    token_ids = [*prompt, *(output or [0] * num_output)]
    made = Sequence(
        sequence_id=0,
        request=request,
        token_ids=token_ids,
        num_prompt_tokens=len(prompt),
        metrics=RequestMetrics(0.0),
        seed=seed,
        stop_ids=frozenset(stop_ids),
        max_num_tokens=10**6,
        num_tracked=tracked_by(request.params, frozenset(stop_ids)),
    )
    made.bad_word_ids = tuple(
        word for word in request.params.bad_words if not isinstance(word, str)
    )
    return made


def processed(logits: list[float], running: Sequence) -> list[float]:
    """Return the logits that a sequence chooses from, by the definition of each setting."""
    params, seen = running.request.params, running.token_ids
    output = seen[running.num_prompt_tokens :]
    values = list(logits)
    for token in set(seen):
        penalty = params.repetition_penalty
        values[token] = values[token] * penalty if values[token] < 0 else values[token] / penalty
    for token in set(output):
        values[token] -= params.presence_penalty + params.frequency_penalty * output.count(token)
    for token, bias in dict(params.logit_bias).items():
        values[token] += bias
    forbidden = set()
    for word in running.bad_word_ids:
        *before, last = word
        if before == seen[len(seen) - len(before) :]:
            forbidden.add(last)
    size = params.no_repeat_ngram_size
    if size is not None and len(seen) >= size - 1:
        grams = {tuple(seen[i : i + size]) for i in range(len(seen) - size + 1)}
        latest = seen[len(seen) - size + 1 :]
        forbidden |= {t for t in range(len(values)) if (*latest, t) in grams}
    if len(output) < params.min_tokens:
        forbidden |= running.stop_ids
    return [-math.inf if token in forbidden else value for token, value in enumerate(values)]


def law(
    logits: list[float], temperature: float, top_k: int | None, top_p: float, min_p: float
) -> tuple[list[float], float]:
    """Return the distribution, and how near the nearest decision was to going the other way."""
    peak = max(logits)
    probabilities = _normal([math.exp((x - peak) / temperature) for x in logits])
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if top_k is not None:
        probabilities = _only(probabilities, order[:top_k])
    margin = math.inf
    if top_p < 1.0:
        kept, mass = [], 0.0
        for token in order:
            if kept:
                margin = min(margin, abs(mass - top_p))
                if mass >= top_p:
                    break
            kept.append(token)
            mass += probabilities[token]
        probabilities = _only(probabilities, kept)
    floor = min_p * max(probabilities)
    below = [p for i, p in enumerate(probabilities) if logits[i] != peak]
    margin = min([margin, *(abs(p - floor) for p in below if min_p > 0)])
    kept = [i for i, p in enumerate(probabilities) if p >= floor or logits[i] == peak]
    return _only(probabilities, kept), margin


def _only(probabilities: list[float], kept: list[int]) -> list[float]:
    chosen = set(kept)
    return _normal([p if i in chosen else 0.0 for i, p in enumerate(probabilities)])


def _normal(values: list[float]) -> list[float]:
    total = math.fsum(values)
    return [value / total for value in values]


def chi_square_p(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how likely counts at least as far from `expected` are, if those are right.

    Cells that expect fewer than five are pooled, as the approximation needs.
    """
    counts, expected = counts.double().flatten(), expected.double().flatten()
    assert bool((counts[expected == 0] == 0).all()), "a token of probability zero was drawn"
    rare = expected < 5
    if bool(rare.any()):
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        counts, expected = counts[expected > 0], expected[expected > 0]
    if len(counts) < 2:
        return 1.0
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))
