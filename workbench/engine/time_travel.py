"""Going back and going on elsewhere: an engine's requests as plain data, and put in again.

Called through the methods of the same names; nothing is changed before all has been checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from workbench.cache import KVCache
from workbench.engine import checks, files
from workbench.engine.brancher import Brancher
from workbench.engine.requests import RequestBook, RequestRecord
from workbench.engine.state import EngineState, in_order, pack, unpack
from workbench.errors import RequestError
from workbench.events import EngineRestored, EventBus
from workbench.interrupts import shielded
from workbench.lora import LoRAManager
from workbench.models import DecoderLM
from workbench.scheduler import Scheduler


class Travels(Protocol):
    """What is needed of an engine."""

    model: DecoderLM
    cache: KVCache
    scheduler: Scheduler
    loras: LoRAManager
    bus: EventBus

    def find(self, request_id: str) -> RequestRecord: ...

    def discard(self, request_ids: Iterable[str]) -> None: ...


def checkpoint(engine: Travels, book: RequestBook) -> EngineState:
    """Return every request as it stands; see `Engine.checkpoint`."""
    records = in_order(book.records.values(), engine.scheduler.running)
    model = files.identity(engine.model.config)
    return EngineState(engine.scheduler.step, tuple(pack(record) for record in records), model)


def restore(engine: Travels, book: RequestBook, brancher: Brancher, state: EngineState) -> None:
    """Go back to a checkpoint; see `Engine.restore`."""
    if not isinstance(state, EngineState):
        raise RequestError("state", state, "is no checkpoint", "Pass `engine.checkpoint()`.")
    if state.model != files.identity(engine.model.config):
        fix = "Restore it in an engine of the model that it was taken of."
        raise RequestError("state", state, "is of another model", fix)
    records = [unpack(request, engine.model, book.next_number) for request in state.requests]
    for record in records:
        if not record.finished:
            engine.loras.check_uses(record.request.lora)
            limits = engine.scheduler.config
            checks.check_loaded(record.request, engine.cache.blocks, engine.model, limits)
    with shielded():
        engine.discard(list(book.records))
        if engine.bus:
            engine.bus.emit(EngineRestored(engine.scheduler.step, state.step))
        for record in records:
            brancher.enter(record)


def save(engine: Travels, request_id: str, path: Path) -> Path:
    """Write a request to a file; see `Engine.save`."""
    files.write(path, pack(engine.find(request_id)), engine.model.config)
    return path


def load(
    engine: Travels, book: RequestBook, brancher: Brancher, path: Path, request_id: str | None
) -> str:
    """Continue a saved request; see `Engine.load`."""
    state = files.read(path, engine.model.config)
    if request_id is not None:
        state = replace(state, request=replace(state.request, request_id=request_id))
    book.require_free(state.request.request_id)
    checks.check_loaded(state.request, engine.cache.blocks, engine.model, engine.scheduler.config)
    engine.loras.check_uses(state.request.lora)
    record = unpack(state, engine.model, book.next_number)
    with shielded():
        brancher.enter(record)
    return state.request.request_id
