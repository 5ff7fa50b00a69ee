"""What requests want to know of their tokens besides the next one: prompt log-probabilities and
activations.

Called by the runner after the forward pass; the scheduler adds each report to its sequence when it
commits the step. Only positions that nothing is known of yet are reported, so that a chunk, a
resume after preemption and a fork need no case of their own. A prompt's logits are never held as a
whole: they are made and scored slice by slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.batch import ForwardContext, StepPlan
from workbench.models import DecoderLM
from workbench.request import Sequence, TokenLogprobs
from workbench.results import RowReport
from workbench.sample import token_logprobs

# Logits of a slice: 16 MiB as float32, and a few times that while they are ranked.
SLICE_ELEMENTS = 2**22


class _Row(NamedTuple):
    """A row that reports: its tokens lie at `offset` of the batch and `start` of its sequence."""

    number: int
    sequence: Sequence
    start: int
    stop: int
    offset: int

    def packed(self, position: int) -> int:
        """Return where in the batch a position of the sequence lies."""
        assert position >= self.start, "nothing is known of a token that was not computed"
        return position - self.start + self.offset


class _Scored(NamedTuple):
    """A prompt token to score: the packed position before it, its id, and how many top tokens."""

    position: int
    token_id: int
    num_top: int


def points_of(plan: StepPlan) -> list[str]:
    """Return where rows are to be taken in this pass, each point once."""
    kept = [s.activations for s in plan.sequences if s.activations is not None]
    return list(dict.fromkeys(point for activations in kept for point in activations.points))


def make_reports(
    plan: StepPlan,
    model: DecoderLM,
    hidden: Tensor,
    ctx: ForwardContext,
    seen: Mapping[str, Tensor],
) -> dict[int, RowReport]:
    """Return a report for each row whose request asks for one, by row.

    hidden: what `model` made of the plan's tokens, [T, hidden], in the pass of `ctx`. seen: what it
    computed on the way at `points_of(plan)`, [T, …] each.
    """
    rows = _rows(plan)
    if not rows:
        return {}
    reports = {row.number: RowReport() for row in rows}
    _report_activations(rows, seen, reports)
    _report_logprobs(rows, model, hidden, ctx, reports)
    return reports


def _rows(plan: StepPlan) -> list[_Row]:
    asking = [
        i
        for i, s in enumerate(plan.sequences)
        if s.prompt_logprobs is not None or s.activations is not None
    ]
    if not asking:
        return []
    offsets = list(accumulate(plan.num_new, initial=0))
    starts, counts = plan.starts, plan.num_new
    return [
        _Row(i, plan.sequences[i], starts[i], starts[i] + counts[i], offsets[i]) for i in asking
    ]


def _report_activations(
    rows: list[_Row], seen: Mapping[str, Tensor], reports: Mapping[int, RowReport]
) -> None:
    """Copy to the CPU, point by point in one piece, what the rows keep; then cut it by row."""
    for point, value in seen.items():
        spans = [
            (row.number, slice(row.packed(kept.num_positions), row.packed(row.stop)))
            for row in rows
            if (kept := row.sequence.activations) is not None
            and point in kept.points
            and kept.num_positions < row.stop
        ]
        if not spans:
            continue
        whole = torch.cat([value[span] for _, span in spans]).cpu()
        parts = torch.split(whole, [span.stop - span.start for _, span in spans])
        for (number, _), part in zip(spans, parts, strict=True):
            reports[number].activations[point] = part


def _report_logprobs(
    rows: list[_Row],
    model: DecoderLM,
    hidden: Tensor,
    ctx: ForwardContext,
    reports: Mapping[int, RowReport],
) -> None:
    """Score every row's next prompt tokens, all rows together."""
    wanted = {row.number: _unscored(row) for row in rows}
    scored = [token for tokens in wanted.values() for token in tokens if token is not None]
    entries = iter(_score(scored, model, hidden, ctx))
    for number, tokens in wanted.items():
        reports[number].prompt_logprobs = [
            None if token is None else next(entries) for token in tokens
        ]


def _unscored(row: _Row) -> list[_Scored | None]:
    """Return what of the prompt this pass can score and nobody has; None for an embedding.

    A token is scored where the one before it is computed.
    """
    known, embeds = row.sequence.prompt_logprobs, row.sequence.request.embeds
    if known is None:
        return []
    num_top = row.sequence.request.params.prompt_logprobs or 0
    stop = min(row.stop + 1, row.sequence.num_prompt_tokens)
    return [
        None
        if embeds is not None and embeds.covers(position)
        else _Scored(row.packed(position - 1), row.sequence.token_ids[position], num_top)
        for position in range(len(known), stop)
    ]


def _score(
    tokens: list[_Scored], model: DecoderLM, hidden: Tensor, ctx: ForwardContext
) -> list[TokenLogprobs]:
    """Return the log-probabilities of these tokens under the model's own distribution."""
    entries: list[TokenLogprobs] = []
    size = max(1, SLICE_ELEMENTS // model.config.vocab_size)
    for start in range(0, len(tokens), size):
        part = tokens[start : start + size]
        places = torch.tensor([[t.position, t.token_id] for t in part]).to(hidden.device)
        asked = ctx.at([token.position for token in part])
        logits = model.logits(hidden[places[:, 0]], asked)  # [n, vocab]
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        entries += token_logprobs(logprobs, places[:, 1], [t.num_top for t in part])
    return entries
