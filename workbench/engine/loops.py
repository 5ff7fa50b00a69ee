"""Loops over `Engine.advance`: one request as a stream, or a batch of prompts to its end.

Called through the methods of the same names; they use the engine's public face alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from workbench.config import require_positive
from workbench.engine.checks import pair
from workbench.engine.record import StepRecord
from workbench.engine.requests import RequestRecord
from workbench.errors import RequestError
from workbench.interrupts import shielded
from workbench.request import Prompt, RequestOutput
from workbench.sampling_params import SamplingParams

OnFinish = Callable[[RequestRecord], Any]


class Droppable(Protocol):
    """What a loop may have left under way; see `workbench.engine.overlap`."""

    def drop(self) -> None: ...


class Steppable(Protocol):
    """What the loops need of an engine; see `Engine` for what each does."""

    @property
    def has_work(self) -> bool: ...

    @property
    def overlap(self) -> Droppable: ...

    def advance(self) -> StepRecord: ...

    def add(
        self, prompt: Prompt, params: SamplingParams | None = None, *, lora: str | None = None
    ) -> str: ...

    def find(self, request_id: str) -> RequestRecord: ...

    def output(self, request_id: str) -> RequestOutput: ...

    def forget(self, request_id: str) -> RequestOutput: ...

    def discard(self, request_ids: Iterable[str]) -> None: ...


def run(engine: Steppable, max_steps: int | None) -> list[StepRecord]:
    """Step until nothing is left, or `max_steps` times; return the records.

    Raises `ConfigError` unless `max_steps` is None or a whole number of at least 0.
    """
    if max_steps not in (None, 0):
        require_positive("max_steps", max_steps)
    records: list[StepRecord] = []
    try:
        while engine.has_work and (max_steps is None or len(records) < max_steps):
            records.append(engine.advance())
    finally:
        engine.overlap.drop()
    return records


def stream(engine: Steppable, request_id: str) -> Iterator[RequestOutput]:
    """Step the engine until this request ends, yielding its output after each of its tokens.

    Raises `RequestError` if it is paused and nothing else runs.
    """
    record = engine.find(request_id)
    seen = record.num_output_tokens
    try:
        while not record.finished:
            if not engine.has_work:
                raise RequestError("request_id", request_id, "is paused", "Resume it first.")
            engine.advance()
            if record.num_output_tokens > seen or record.finished:
                seen = record.num_output_tokens
                yield engine.output(request_id)
    finally:
        engine.overlap.drop()


def generate(
    engine: Steppable,
    prompts: Iterable[Prompt],
    params: SamplingParams | list[SamplingParams] | None,
    lora: str | list[str | None] | None,
    on_finish: OnFinish | None,
) -> list[RequestOutput]:
    """Run these prompts to their end, all in flight together; see `Engine.generate`."""
    request_ids: list[str] = []
    try:
        for prompt, own, adapters in pair(prompts, params, lora):
            with shielded():  # what is added is also noted
                request_ids.append(engine.add(prompt, own, lora=adapters))
        _run(engine, set(request_ids), on_finish)
        return [engine.forget(request_id) for request_id in request_ids]
    except BaseException:
        engine.discard(request_ids)
        raise
    finally:
        engine.overlap.drop()


def _run(engine: Steppable, request_ids: set[str], on_finish: OnFinish | None) -> None:
    while request_ids and engine.has_work:  # an observer may have aborted some
        for sequence in engine.advance().finished:
            request_id = sequence.request.request_id
            if request_id not in request_ids or not engine.find(request_id).finished:
                continue
            request_ids.remove(request_id)
            if on_finish is not None:
                on_finish(engine.find(request_id))
