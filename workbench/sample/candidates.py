"""A group's filtered distribution, and the draw from it: the sampler's own operations.

Called by `Sampler`, group after group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.sample import filters
from workbench.sample.greedy import INVALID
from workbench.sample.params import NARROW, RowGroup
from workbench.sample.random import inverse_cdf


class Candidates(NamedTuple):
    """A group's filtered distribution: weights [G, W], their token ids (None: the columns are the
    ids), and each row's largest logit [G, 1], finite exactly where the row has a distribution."""

    weights: Tensor
    token_ids: Tensor | None
    peak: Tensor


def candidates(logits: Tensor, group: RowGroup) -> Candidates:
    """Return the filtered distribution of a group's rows of logits [R, V]."""
    logits = (logits if group.rows is None else logits[group.rows]).float()
    peak = logits.amax(dim=1, keepdim=True)
    token_ids: Tensor | None
    if not group.ranked:
        token_ids, weights = None, filters.temperature(logits, group.temperature, peak)
    elif group.searches:
        token_ids, weights = _nucleus(logits, group, peak)
    else:
        token_ids, weights = _ranked(logits, group, peak, group.width)
        if group.top_k is not None:
            weights = filters.top_k(weights, group.top_k)
        if group.top_p is not None:
            weights = filters.top_p(weights, group.top_p)
    if group.min_p is not None:
        weights = filters.min_p(weights, group.min_p)
    return Candidates(weights, token_ids, peak)


def _ranked(
    logits: Tensor, group: RowGroup, peak: Tensor, width: int | None
) -> tuple[Tensor, Tensor]:
    token_ids = filters.rank(logits, width)
    values = logits.gather(1, token_ids)
    return token_ids, filters.temperature(values, group.temperature, peak)


def _nucleus(logits: Tensor, group: RowGroup, peak: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids and weights after top-p alone, sorting the vocabulary only if it must be.

    Nearly always the likeliest `NARROW` tokens hold p of the probability already. Asking costs one
    wait for the device, far less than the sort; either way the result is the same, bit for bit.
    """
    assert group.top_p is not None, "only top-p asks for a ranking of unknown width"
    total = filters.temperature(logits, group.temperature, peak).sum(dim=1, keepdim=True)
    token_ids, weights = _ranked(logits, group, peak, NARROW)
    held = weights.sum(dim=1, keepdim=True)
    if not bool((held >= group.top_p * total).all()):
        token_ids, weights = _ranked(logits, group, peak, None)
    return token_ids, filters.top_p(weights, group.top_p, total)


def draw_from(given: Candidates, uniform: Tensor) -> Tensor:
    """Return the token that each row's uniform [R] falls on, `INVALID` for a row without a
    distribution."""
    weights, token_ids, peak = given
    column = inverse_cdf(weights, uniform)
    tokens = column if token_ids is None else token_ids.gather(1, column[:, None])[:, 0]
    return torch.where(peak[:, 0].isfinite(), tokens, INVALID)
