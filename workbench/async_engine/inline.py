"""`stream_inline`: the deltas of a request, from an engine that whoever reads them steps.

`LLM.stream` is this. With many readers at once, or none at times, use `AsyncEngine`.
"""

from __future__ import annotations

from collections.abc import Iterator

from workbench.async_engine.delta import Piece, Reader, StreamDelta
from workbench.engine import Engine
from workbench.engine.requests import RequestRecord
from workbench.errors import RequestError
from workbench.request import Prompt
from workbench.sampling_params import SamplingParams


def stream_inline(
    engine: Engine, prompt: Prompt, params: SamplingParams | None = None, *, lora: str | None = None
) -> Iterator[StreamDelta]:
    """Add a request and step the engine until it ends; yield what is new after each of its tokens.

    Nothing is queued before the first delta is asked for. Leaving the loop aborts the request;
    others that the engine holds run along. Raises what `Engine.add` does, and `RequestError` if it
    is paused and nothing else runs.
    """
    request_id = engine.add(prompt, params, lora=lora)
    try:
        record = engine.find(request_id)
        reader = Reader(record.request, engine.tokenizer)
        told: dict[int, int] = {}
        while not record.finished:
            if not engine.has_work:
                raise RequestError("request_id", request_id, "is paused", "Resume it first.")
            engine.advance()
            yield from reader.deltas(_pieces(record, told))
        yield from reader.deltas({}, engine.output(request_id))
    finally:
        engine.overlap.drop()
        if not engine.closed:
            engine.discard([request_id])


def _pieces(record: RequestRecord, told: dict[int, int]) -> dict[int, Piece]:
    """Return what is new of each branch; of beams, and of `best_of`, nothing before the end."""
    params = record.request.params
    if params.beam_width is not None or params.num_branches != params.n or record.finished:
        return {}
    pieces: dict[int, Piece] = {}
    for sequence in record.sequences:
        start = told.get(sequence.index, 0)
        token_ids = sequence.output_token_ids[start:]
        if token_ids:
            told[sequence.index] = start + len(token_ids)
            logprobs = [] if sequence.logprobs is None else sequence.logprobs[start:]
            pieces[sequence.index] = Piece(token_ids, logprobs, sequence.finish_reason)
    return pieces
