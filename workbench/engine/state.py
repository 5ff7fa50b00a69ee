"""Requests as plain data: what `checkpoint`, `restore`, `save` and `load` are made of.

A running request is its tokens: whatever else the engine holds (blocks, KV, text streams) follows
from them by the catch-up rule, exactly as after a preemption, and mostly from the prefix cache. So
a checkpoint takes no block and no copy of KV, outlives any cache pressure, and goes to disk as it
is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from workbench.activations import Activations
from workbench.describe import Described
from workbench.engine.admission import output_stream, stop_ids_of, tracked_by
from workbench.engine.plain import pack_logprobs, unpack_logprobs
from workbench.engine.requests import RequestRecord
from workbench.engine.strategies import make_strategy
from workbench.metrics import RequestMetrics
from workbench.models import DecoderLM
from workbench.request import Request, Sequence, Status
from workbench.sample import bad_word_ids


@dataclass(frozen=True, slots=True, repr=False)
class RequestState(Described):
    """One request: `sequences` and `strategy` are plain data, of branches by position."""

    request: Request
    sequences: tuple[dict[str, Any], ...]
    strategy: dict[str, Any] | None

    def describe(self) -> dict[str, Any]:
        """Return which request, and how far it was."""
        lengths = [len(s["token_ids"]) - s["num_prompt_tokens"] for s in self.sequences]
        return {"request": self.request.request_id, "output tokens": lengths}


@dataclass(frozen=True, slots=True, repr=False)
class EngineState(Described):
    """All requests of an engine between two steps, those that would run first in front.

    model: the model's shape, as plain data.
    """

    step: int
    requests: tuple[RequestState, ...]
    model: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """Return when it was taken, and of what."""
        ids = ", ".join(state.request.request_id for state in self.requests)
        return {"step": self.step, "requests": ids or "none"}


def pack(record: RequestRecord) -> RequestState:
    """Return a record as plain data."""
    places = {id(sequence): place for place, sequence in enumerate(record.sequences)}
    strategy = None if record.strategy is None else record.strategy.pack(places)
    sequences = tuple(_pack(sequence) for sequence in record.sequences)
    return RequestState(record.request, sequences, strategy)


def unpack(state: RequestState, model: DecoderLM, next_number: Callable[[], int]) -> RequestRecord:
    """Return a record with sequences that have yet to be queued, if they have not ended.

    next_number: gives the sequences new ids, in the order of their old ones.
    """
    sequences = [_unpack(data, state.request, model) for data in state.sequences]
    for sequence in sorted(sequences, key=lambda sequence: sequence.sequence_id):
        sequence.sequence_id = next_number()
    for sequence in sequences[1:]:
        sequence.leader = sequences[0]
    strategy = make_strategy(state.request.params, sequences[0])
    if strategy is not None:
        assert state.strategy is not None, "a request with a strategy was packed with it"
        strategy.unpack(state.strategy, sequences)
    return RequestRecord(state.request, sequences, strategy)


def in_order(records: Iterable[RequestRecord], running: list[Sequence]) -> list[RequestRecord]:
    """Return the records, those with running sequences in front, as they were admitted."""
    admitted = {id(sequence): place for place, sequence in reversed(list(enumerate(running)))}

    def place(record: RequestRecord) -> int:
        return min((admitted.get(id(s), len(running)) for s in record.sequences), default=0)

    return sorted(records, key=place)


def _pack(sequence: Sequence) -> dict[str, Any]:
    entries, scores, kept = sequence.logprobs, sequence.prompt_logprobs, sequence.activations
    return {
        "sequence_id": sequence.sequence_id,
        "token_ids": list(sequence.token_ids),
        "num_prompt_tokens": sequence.num_prompt_tokens,
        "max_num_tokens": sequence.max_num_tokens,
        "seed": sequence.seed,
        "index": sequence.index,
        "paused": sequence.status is Status.PAUSED,
        "finish_reason": sequence.finish_reason,
        "stop_reason": sequence.stop_reason,
        "error": sequence.error,
        "logprobs": None if entries is None else [pack_logprobs(entry) for entry in entries],
        "prompt_logprobs": None if scores is None else [e and pack_logprobs(e) for e in scores],
        "activations": None if kept is None else kept.state(),
        "metrics": asdict(sequence.metrics),
    }


def _unpack(data: dict[str, Any], request: Request, model: DecoderLM) -> Sequence:
    stop_ids = stop_ids_of(request.params, model.config)
    output = data["token_ids"][data["num_prompt_tokens"] :]
    entries, scores, kept = (data[k] for k in ("logprobs", "prompt_logprobs", "activations"))
    return Sequence(
        sequence_id=data["sequence_id"],
        request=request,
        token_ids=list(data["token_ids"]),
        num_prompt_tokens=data["num_prompt_tokens"],
        metrics=RequestMetrics(**data["metrics"]),
        seed=data["seed"],
        stop_ids=stop_ids,
        max_num_tokens=data["max_num_tokens"],
        stream=output_stream(request, output, model.tokenizer),
        index=data["index"],
        bad_word_ids=bad_word_ids(request.params, model.tokenizer, model.config.vocab_size),
        num_tracked=tracked_by(request.params, stop_ids),
        status=_status(data),
        finish_reason=data["finish_reason"],
        stop_reason=data["stop_reason"],
        error=data["error"],
        logprobs=None if entries is None else [unpack_logprobs(entry) for entry in entries],
        prompt_logprobs=None if scores is None else [e and unpack_logprobs(e) for e in scores],
        activations=None if kept is None else Activations.from_state(kept),
    )


def _status(data: dict[str, Any]) -> Status:
    if data["finish_reason"] is not None:
        return Status.FINISHED
    return Status.PAUSED if data["paused"] else Status.WAITING
