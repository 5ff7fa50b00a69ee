"""A sequence as the user sees it: text made from tokens when somebody asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.request import CompletionOutput, RequestOutput, Sequence

if TYPE_CHECKING:
    from workbench.models.tokenizer import Tokenizer


def make_output(sequence: Sequence, tokenizer: Tokenizer | None) -> RequestOutput:
    """Return a sequence's output so far. Without a tokenizer the text is empty.

    A sequence with stop strings has been decoded on the way and is cut where they say; any other is
    decoded here, so that nobody pays for text that is not read.
    """
    token_ids = sequence.output_token_ids
    if sequence.stream is not None:
        text = sequence.stream.text
    else:
        text = tokenizer.decode(token_ids) if tokenizer is not None else ""
        if not sequence.finished:
            text = text.rstrip("\ufffd")  # a character whose last bytes are still to come
    completion = CompletionOutput(
        index=0,
        text=text,
        token_ids=token_ids,
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
