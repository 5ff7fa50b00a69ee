"""`Sampler`: logits to tokens, one for each row. Called by the engine once a step.

Order: temperature, top-k, top-p, min-p, each on what the one before has left. A token depends only
on its row of logits, its parameters, `seq.seed` and `seq.num_output_tokens`: not on the batch. No
state is kept but a cache of parameter tensors. A batch of greedy rows costs one argmax.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.batch import SampledTokens
from workbench.describe import Described
from workbench.errors import NonFiniteLogits
from workbench.request import Sequence, TokenLogprobs
from workbench.sample import filters
from workbench.sample.greedy import argmax
from workbench.sample.logprobs import token_logprobs
from workbench.sample.params import NARROW, RowGroup, SamplingTensors, to_device
from workbench.sample.random import inverse_cdf, uniforms

INVALID = -1  # stands for a token on its way to the host, where a row had no distribution


class Candidates(NamedTuple):
    """A group's filtered distribution: weights [G, W], their token ids (None: the columns are the
    ids), and each row's largest logit [G, 1], finite exactly where the row has a distribution."""

    weights: Tensor
    token_ids: Tensor | None
    peak: Tensor


class Sampler(Described):
    """Chooses one token a row: greedy, or drawn after temperature, top-k, top-p and min-p."""

    def __init__(self) -> None:
        self._tensors: SamplingTensors | None = None

    def __call__(self, logits: Tensor, sequences: list[Sequence]) -> SampledTokens:
        """Return a token for each row of logits [R, V] (any float dtype, any device).

        sequences: the R sequences that sample in this step, in row order. Raises `NonFiniteLogits`
        for rows with NaN, +inf or nothing above -inf, where a draw or a log-probability needs the
        distribution; a greedy row takes its argmax unchecked, so that it costs nothing else.
        """
        tensors = self._tensors_for(logits, sequences)
        tokens = self._choose(logits, tensors)
        token_ids = tokens.tolist()
        if tensors.groups:
            _raise_for([i for i, t in enumerate(token_ids) if t == INVALID], sequences)
        if not tensors.logprob_rows:
            return SampledTokens(token_ids)
        return SampledTokens(token_ids, self._logprobs(logits, tokens, tensors))

    def probabilities(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """Return the distribution each row is drawn from, [R, V] float64: all filters applied.

        A greedy row has all its probability on the argmax. Raises as calling does.
        """
        tensors = self._tensors_for(logits, sequences)
        result = torch.zeros(logits.shape, dtype=torch.float64, device=logits.device)
        result.scatter_(1, logits.argmax(dim=-1, keepdim=True), 1.0)
        for group in tensors.groups:
            weights, token_ids, peak = _candidates(logits, group)
            bad = (~peak.isfinite()).flatten().tolist()
            _raise_for([i for i, b in zip(group.indices, bad, strict=True) if b], sequences)
            dense = weights
            if token_ids is not None:
                shape = (len(group.indices), logits.shape[1])
                dense = weights.new_zeros(shape).scatter_(1, token_ids, weights)
            result[group.indices] = dense.double() / dense.sum(dim=1, keepdim=True)
        return result

    def describe(self) -> dict[str, Any]:
        """Return the order of the filters, and what the last batch was made of."""
        facts = {"order": "temperature, top-k, top-p, min-p"}
        if self._tensors is not None:
            num_rows, num_greedy = len(self._tensors.sequences), self._tensors.num_greedy
            facts["last batch"] = f"{num_greedy} greedy, {num_rows - num_greedy} sampled"
        return facts

    def _tensors_for(self, logits: Tensor, sequences: list[Sequence]) -> SamplingTensors:
        assert logits.shape[0] == len(sequences), "one row of logits for each sequence"
        if self._tensors is None or not self._tensors.fits(sequences, logits):
            self._tensors = SamplingTensors.of(sequences, logits.shape[1], logits.device)
        return self._tensors

    def _choose(self, logits: Tensor, tensors: SamplingTensors) -> Tensor:
        """Return a token for each row, [R] int64, `INVALID` where a draw was impossible."""
        if tensors.num_greedy:
            tokens = argmax(logits)
        else:
            tokens = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
        if tensors.keys is None:
            return tokens
        uniform, start = self._uniforms(tensors, tensors.keys), 0
        for group in tensors.groups:
            end = start + len(group.indices)
            drawn = _draw(_candidates(logits, group), uniform[start:end])
            start = end
            tokens = drawn if group.rows is None else tokens.index_copy_(0, group.rows, drawn)
        return tokens

    def _uniforms(self, tensors: SamplingTensors, keys: Tensor) -> Tensor:
        """Return the numbers that decide this step's draws, group after group, on the device."""
        rows = [tensors.sequences[i] for group in tensors.groups for i in group.indices]
        # Read each time: an interrupted step, a rewind or a draft need not add one token each.
        indices = torch.tensor([sequence.num_output_tokens for sequence in rows])
        # Hashed on the CPU, where these few small operations cost no kernel launches.
        return to_device(uniforms(keys, indices), tensors.device)

    def _logprobs(
        self, logits: Tensor, tokens: Tensor, tensors: SamplingTensors
    ) -> list[TokenLogprobs | None]:
        rows = list(tensors.logprob_rows)
        wanted = [tensors.sequences[i].num_tracked or 0 for i in rows]
        index = to_device(torch.tensor(rows), logits.device)
        entries = token_logprobs(logits[index], tokens[index], wanted)
        found = dict(zip(rows, entries, strict=True))
        _raise_for([i for i in rows if math.isnan(found[i].logprob)], tensors.sequences)
        return [found.get(i) for i in range(len(tensors.sequences))]


def _candidates(logits: Tensor, group: RowGroup) -> Candidates:
    """Return the filtered distribution of a group's rows of logits [R, V]."""
    logits = (logits if group.rows is None else logits[group.rows]).float()
    peak = logits.amax(dim=1, keepdim=True)
    token_ids: Tensor | None
    if not group.ranked:
        token_ids, weights = None, filters.temperature(logits, group.temperature, peak)
    elif group.width is None and group.top_k is None:
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


def _draw(candidates: Candidates, uniform: Tensor) -> Tensor:
    weights, token_ids, peak = candidates
    column = inverse_cdf(weights, uniform)
    tokens = column if token_ids is None else token_ids.gather(1, column[:, None])[:, 0]
    return torch.where(peak[:, 0].isfinite(), tokens, INVALID)


def _raise_for(rows: list[int], sequences: list[Sequence]) -> None:
    if rows:
        raise NonFiniteLogits([sequences[row].request.request_id for row in rows])
