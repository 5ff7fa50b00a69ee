"""A sequence as the user sees it: text made from tokens when somebody asks for it.

Called by `Engine.output` and all that rests on it. It changes no sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.request import CompletionOutput, RequestOutput, Sequence, TextStream

if TYPE_CHECKING:
    from workbench.models.tokenizer import Tokenizer


def make_output(sequence: Sequence, tokenizer: Tokenizer | None) -> RequestOutput:
    """Return a sequence's output so far. Without a tokenizer the text is empty."""
    completion = CompletionOutput(
        index=0,
        text=text_of(sequence, tokenizer),
        token_ids=sequence.output_token_ids,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
        logprobs=sequence.logprobs,
    )
    request = sequence.request
    return RequestOutput(
        request_id=request.request_id,
        prompt=request.prompt,
        prompt_token_ids=list(request.prompt_token_ids),
        outputs=[completion],
        finished=sequence.finished,
        metrics=sequence.metrics,
    )


def text_of(sequence: Sequence, tokenizer: Tokenizer | None) -> str:
    """Return a sequence's text: while it runs, only what nothing can take back any more.

    A sequence with stop strings was decoded on the way and is cut where they say; any other is
    decoded here, so that nobody pays for text that is not read.
    """
    stream: TextStream | None = sequence.stream
    if stream is None:
        if tokenizer is None:
            return ""
        stream = tokenizer.stream(sequence.request.prompt_token_ids)
        for token_id in sequence.output_token_ids:
            stream.push(token_id)
    if not sequence.finished:
        return stream.settled
    stream.finish()
    return stream.text
