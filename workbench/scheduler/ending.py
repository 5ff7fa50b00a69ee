"""What a new token does to its sequence: it may end it, by a stop string or id, or its length.

Called by the scheduler when it commits a step, once per new token.
"""

from __future__ import annotations

import time

from workbench.batch import StepPlan
from workbench.errors import GuideFailed
from workbench.request import FinishReason, Sequence, Status, TokenLogprobs
from workbench.results import Accepted, RowReport, SampledTokens


def append_step(plan: StepPlan, sampled: SampledTokens) -> list[Sequence]:
    """Append what a step has made to its sequences; return those that end by it.

    Rows that were aborted while the step ran are left alone.
    """
    finished: list[Sequence] = []
    entries = sampled.logprobs or [None] * len(plan.sampled)
    for place, accepted in sampled.accepted.items():
        sequence = plan.sequences[plan.sampled[place]]
        if sequence.status is Status.RUNNING and append_accepted(sequence, accepted):
            finished.append(sequence)
    for place, message in sampled.errors.items():
        sequence = plan.sequences[plan.sampled[place]]
        if sequence.status is Status.RUNNING and sequence.finish_reason is None:
            sequence.error = message
    for row, token_id, entry in zip(plan.sampled, sampled.token_ids, entries, strict=True):
        sequence = plan.sequences[row]
        if sequence.status is not Status.RUNNING or sequence.finish_reason is not None:
            continue
        if append(sequence, token_id, entry):
            finished.append(sequence)
    return finished


def append(sequence: Sequence, token_id: int, entry: TokenLogprobs | None) -> bool:
    """Append a token and what is reported of it; return whether it ends the sequence.

    A sequence with a chooser only tells it, and one with an error ends without the token.
    """
    if sequence.error is not None:
        sequence.finish_reason = "error"
        return True
    if sequence.chooser is not None:
        assert entry is not None, "a chooser's sequence reports its candidates"
        sequence.chooser.take(sequence, entry)
        return False
    try:
        append_token(sequence, token_id, entry)
    except GuideFailed as error:  # the token stays: it was drawn, and told of
        sequence.error, sequence.finish_reason = f"guided_decoding: {error.problem}", "error"
        return True
    return ends(sequence, token_id)


def append_accepted(sequence: Sequence, accepted: Accepted) -> bool:
    """Append what was accepted of a draft, token by token; return whether one ended the sequence.

    What follows the end is dropped, as it would never have been made.
    """
    entries = accepted.logprobs or [None] * len(accepted.token_ids)
    pairs = zip(accepted.token_ids, entries, strict=True)
    return any(append(sequence, token_id, entry) for token_id, entry in pairs)


def append_token(sequence: Sequence, token_id: int, entry: TokenLogprobs | None) -> None:
    """Append a token and what is reported of it; its guide takes it in, or raises `GuideFailed`."""
    sequence.token_ids.append(token_id)
    if len(sequence.token_ids) - sequence.num_prompt_tokens == 1:
        sequence.metrics.first_token = time.monotonic()
    if entry is not None:
        sequence.logprobs = sequence.logprobs or []
        sequence.logprobs.append(entry)
    if sequence.guide is not None:
        sequence.guide.accept(token_id)


def note(sequence: Sequence, report: RowReport) -> None:
    """Keep what a step reports of a running sequence's tokens."""
    if sequence.status is not Status.RUNNING:
        return  # aborted while the step ran
    if sequence.prompt_logprobs is not None:
        sequence.prompt_logprobs += report.prompt_logprobs
    if sequence.activations is not None and report.activations:
        sequence.activations.extend(report.activations)


def ends(sequence: Sequence, token_id: int) -> bool:
    """Return whether this token, its latest, ends the sequence; if so, set the reasons."""
    stop_string = sequence.stream.push(token_id) if sequence.stream is not None else None
    if stop_string is not None:
        sequence.finish_reason, sequence.stop_reason = "stop", stop_string
    elif token_id in sequence.stop_ids:
        sequence.finish_reason, sequence.stop_reason = "stop", token_id
    elif len(sequence.token_ids) >= sequence.max_num_tokens:
        sequence.finish_reason = "length"
    return sequence.finish_reason is not None


def mark_finished(sequence: Sequence, reason: FinishReason) -> None:
    """Note that a sequence has ended, why and when."""
    sequence.status, sequence.finish_reason = Status.FINISHED, reason
    sequence.metrics.finished = time.monotonic()
    sequence.metrics.num_output_tokens = sequence.num_output_tokens
