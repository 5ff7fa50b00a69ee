"""A sequence as the user sees it: text made from tokens when somebody asks for it.

Called by `Engine.output` and all that rests on it. It changes no sequence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from workbench.engine.requests import RequestRecord
from workbench.request import (
    CompletionOutput,
    RequestOutput,
    Sequence,
    TextStream,
    TokenLogprobs,
)

if TYPE_CHECKING:
    from workbench.models.tokenizer import Tokenizer


def make_output(record: RequestRecord, tokenizer: Tokenizer | None) -> RequestOutput:
    """Return a request's output so far. Without a tokenizer the texts are empty."""
    request = record.request
    return RequestOutput(
        request_id=request.request_id,
        prompt=request.prompt,
        prompt_token_ids=list(request.prompt_token_ids),
        outputs=[
            _completion(place, sequence, tokenizer)
            for place, sequence in enumerate(record.selected)
        ],
        finished=record.finished,
        metrics=record.metrics,
        prompt_logprobs=_prompt_logprobs(record),
    )


def _completion(place: int, sequence: Sequence, tokenizer: Tokenizer | None) -> CompletionOutput:
    request = sequence.request
    text = text_of(sequence, tokenizer)
    if request.params.echo and tokenizer is not None:
        text = (request.prompt or tokenizer.decode(request.text_token_ids)) + text
    hidden_states, activations = _kept(sequence)
    return CompletionOutput(
        index=place,
        text=text,
        token_ids=sequence.output_token_ids,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
        logprobs=_reported(sequence),
        error=sequence.error,
        hidden_states=hidden_states,
        activations=activations,
    )


def _prompt_logprobs(record: RequestRecord) -> list[TokenLogprobs | None] | None:
    """Return what is known of the prompt's tokens: of its one run, whatever the branches."""
    num_top, entries = record.request.params.prompt_logprobs, record.sequences[0].prompt_logprobs
    if num_top is None or entries is None:
        return None
    return [entry and replace(entry, top=entry.top[:num_top]) for entry in entries]


def _kept(sequence: Sequence) -> tuple[Tensor | None, dict[str, Tensor] | None]:
    """Return a sequence's hidden states and activations, of all tokens but the last.

    The last token is not fed back; where a step failed, more may be known than belongs to it.
    """
    kept, params = sequence.activations, sequence.request.params
    if kept is None:
        return None, None
    rows = {point: kept.tensor(point, sequence.num_tokens - 1) for point in kept.points}
    asked = {point: rows[point] for point in params.activations}
    found = {point: part for point, part in asked.items() if part is not None}
    return rows.get(""), found if params.activations else None


def _reported(sequence: Sequence) -> list[TokenLogprobs] | None:
    """Return as many top log-probabilities as were asked for; more may have been noted."""
    params, entries = sequence.request.params, sequence.logprobs
    if params.logprobs is None or entries is None:
        return None
    if params.logprobs == sequence.num_tracked:
        return list(entries)
    return [replace(entry, top=entry.top[: params.logprobs]) for entry in entries]


def text_of(sequence: Sequence, tokenizer: Tokenizer | None) -> str:
    """Return a sequence's text: while it runs, only what nothing can take back any more.

    A sequence with stop strings was decoded on the way and is cut where they say; any other is
    decoded here, so that nobody pays for text that is not read.
    """
    stream: TextStream | None = sequence.stream
    if stream is None:
        if tokenizer is None:
            return ""
        stream = tokenizer.stream(sequence.request.text_token_ids)
        for token_id in sequence.output_token_ids:
            stream.push(token_id)
    if not sequence.finished:
        return stream.settled
    stream.finish()
    return stream.text
