"""`StreamDelta`: what a request made since the delta before it; `Reader` makes them from tokens.

Text is decoded by whoever reads the stream, on its own thread or loop, with the same text stream
as the engine's, so nothing is decoded that nobody reads. Text given out is never taken back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workbench.models.text_stream import IncrementalText
from workbench.models.tokenizer import Tokenizer
from workbench.request import (
    CompletionOutput,
    FinishReason,
    Request,
    RequestOutput,
    TokenLogprobs,
)


@dataclass(frozen=True, slots=True)
class StreamDelta:
    """New tokens of one output. Joined over a stream, an output's deltas give the whole of it.

    index: which of the request's `n` outputs. text: settled text only: never half a character, nor
    the possible beginning of a stop string. logprobs: of `token_ids`, None if not asked for.
    finish_reason: in the output's last delta. output: everything, in the stream's last delta.
    """

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    output: RequestOutput | None = None


@dataclass(slots=True)
class Piece:
    """Tokens of one branch on their way to the reader."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class _Told:
    """How much of an output was given out."""

    text: IncrementalText | None
    num_tokens: int = 0
    num_characters: int = 0
    ended: bool = False


class Reader:
    """Turns a request's pieces into deltas; one per stream, used by its reader alone."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None) -> None:
        self._request, self._tokenizer = request, tokenizer
        self._told: dict[int, _Told] = {}

    def deltas(
        self, pieces: dict[int, Piece], output: RequestOutput | None = None
    ) -> list[StreamDelta]:
        """Return a delta for each output with news; at the end, what the whole of it adds."""
        if output is None:
            return [self._delta(index, piece) for index, piece in pieces.items()]
        last = len(output.outputs) - 1
        rests = [self._rest(c, output if i == last else None) for i, c in enumerate(output.outputs)]
        return [rest for rest in rests if rest is not None]

    def _delta(self, index: int, piece: Piece) -> StreamDelta:
        told = self._state(index)
        text = self._echo(told)
        if told.text is not None:
            for token_id in piece.token_ids:
                told.text.push(token_id)
            if piece.finish_reason is not None:
                told.text.finish()
            text += told.text.take()
        told.num_tokens += len(piece.token_ids)
        told.num_characters += len(text)
        told.ended = piece.finish_reason is not None
        logprobs = None if self._request.params.logprobs is None else piece.logprobs
        request_id, reason = self._request.request_id, piece.finish_reason
        return StreamDelta(request_id, index, text, piece.token_ids, logprobs, reason)

    def _rest(
        self, completion: CompletionOutput, output: RequestOutput | None
    ) -> StreamDelta | None:
        """Return what a finished output adds to its deltas so far; None for nothing at all."""
        told = self._state(completion.index)
        if told.ended and output is None:
            return None
        logprobs = completion.logprobs
        return StreamDelta(
            self._request.request_id,
            completion.index,
            completion.text[told.num_characters :],
            completion.token_ids[told.num_tokens :],
            None if logprobs is None else logprobs[told.num_tokens :],
            None if told.ended else completion.finish_reason,
            output,
        )

    def _state(self, index: int) -> _Told:
        if index not in self._told:
            ids, params = self._request.text_token_ids, self._request.params
            text = self._tokenizer.stream(ids, params) if self._tokenizer else None
            self._told[index] = _Told(text)
        return self._told[index]

    def _echo(self, told: _Told) -> str:
        """Return the prompt where an output begins and was asked to begin with it."""
        begins = told.num_tokens == told.num_characters == 0
        if not (self._request.params.echo and begins and self._tokenizer):
            return ""
        prompt = self._request.prompt
        return prompt or self._tokenizer.decode(self._request.text_token_ids)
