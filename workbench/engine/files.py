"""A request on disk: JSON, read as data and checked before anything is queued.

Written by `Engine.save`, read by `Engine.load`, in this process or another one with the same model.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from workbench.config import ModelConfig
from workbench.engine.state import RequestState
from workbench.errors import RequestError, StateError, WorkbenchError
from workbench.request import Request, RequestMetrics
from workbench.sampling_params import SamplingParams

FORMAT, VERSION = "workbench-request", 1
_AGAIN = "Save it again with `engine.save(request_id, path)`."
_TIMES = ("arrival", "first_scheduled", "first_token", "finished")


def write(path: Path, state: RequestState, config: ModelConfig) -> None:
    """Write a request; `RequestError` if part of it is code, which a file cannot hold."""
    params = state.request.params
    if params.logits_processors:
        fix = "Swap them out first, or keep the request in memory with `engine.checkpoint()`."
        raise RequestError("logits_processors", params.logits_processors, "are code, not data", fix)
    now = time.monotonic()
    request = {field.name: getattr(state.request, field.name) for field in fields(Request)}
    deadline = state.request.deadline
    request |= {"params": asdict(params), "deadline": None if deadline is None else deadline - now}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": _identity(config),
        "request": request,
        "sequences": [_shifted(data, -now) for data in state.sequences],
        "strategy": state.strategy,
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def read(path: Path, config: ModelConfig) -> RequestState:
    """Return the request of a file; `StateError` if it is damaged, foreign or of another model."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        marks = content.get("format"), content.get("version")
    except (OSError, ValueError, AttributeError) as error:
        raise StateError(f"{path}: cannot be read as a request ({error}). {_AGAIN}") from error
    if marks != (FORMAT, VERSION):
        raise StateError(f"{path}: is {marks}, this reads {(FORMAT, VERSION)}. {_AGAIN}")
    if content.get("model") != _identity(config):
        raise StateError(f"{path}: was saved from another model. Load it into that one.")
    now = time.monotonic()
    try:
        request = dict(content["request"])
        deadline = request.pop("deadline")
        request["params"] = SamplingParams(**request["params"])
        request["prompt_token_ids"] = tuple(request["prompt_token_ids"])
        request["deadline"] = None if deadline is None else deadline + now
        sequences = tuple(_shifted(data, now) for data in content["sequences"])
        return RequestState(Request(**request), sequences, content["strategy"])
    except (KeyError, TypeError, ValueError, WorkbenchError) as error:
        raise StateError(f"{path}: a field is wrong ({error!r}). {_AGAIN}") from error


def _identity(config: ModelConfig) -> dict[str, Any]:
    """Return what must be equal for tokens to mean the same; the dtype may differ."""
    identity = json.loads(json.dumps(asdict(config)))
    del identity["dtype"]
    assert isinstance(identity, dict)
    return identity


def _shifted(data: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return a sequence's data with its times moved, since clocks of two processes differ."""
    metrics = dict(data["metrics"])
    for name in _TIMES:
        if metrics[name] is not None:
            metrics[name] += seconds
    assert set(metrics) == {field.name for field in fields(RequestMetrics)}
    return {**data, "metrics": metrics}
