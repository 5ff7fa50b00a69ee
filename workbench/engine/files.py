"""A request on disk: JSON, read as data and checked before anything is queued.

Written by `Engine.save`, read by `Engine.load`, in this process or another one with the same model.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from workbench.atomic_files import atomic_write
from workbench.config import ModelConfig
from workbench.embeds import PromptEmbeds
from workbench.engine.plain import pack_tensor, unpack_tensor
from workbench.engine.state import RequestState
from workbench.errors import RequestError, StateError, WorkbenchError
from workbench.guided_params import GuidedDecodingParams
from workbench.metrics import RequestMetrics
from workbench.request import AdapterUse, Request
from workbench.retention import KeptRange
from workbench.sampling_params import SamplingParams

FORMAT, VERSION = "workbench-request", 4
_AGAIN = "Save it again with `engine.save(request_id, path)`."
_TIMES = ("arrival", "first_scheduled", "first_token", "finished")


def write(path: Path, state: RequestState, config: ModelConfig) -> None:
    """Write a request, whole or not at all; `RequestError` if it holds code, which no file can."""
    params = state.request.params
    if params.logits_processors:
        fix = "Swap them out first, or keep the request in memory with `engine.checkpoint()`."
        raise RequestError("logits_processors", params.logits_processors, "are code, not data", fix)
    now = time.monotonic()
    request = {field.name: getattr(state.request, field.name) for field in fields(Request)}
    deadline = state.request.deadline
    request |= {"params": asdict(params), "deadline": None if deadline is None else deadline - now}
    request |= {"embeds": _pack_embeds(state.request.embeds)}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": identity(config),
        "request": request,
        "sequences": [_shifted(_packed(data), -now) for data in state.sequences],
        "strategy": state.strategy,
    }
    text = json.dumps(content)
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read(path: Path, config: ModelConfig) -> RequestState:
    """Return the request of a file; `StateError` if it is damaged, foreign or of another model."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        marks = content.get("format"), content.get("version")
    except (OSError, ValueError, AttributeError) as error:
        raise StateError(f"{path}: cannot be read as a request ({error}). {_AGAIN}") from error
    if marks != (FORMAT, VERSION):
        raise StateError(f"{path}: is {marks}, this reads {(FORMAT, VERSION)}. {_AGAIN}")
    if content.get("model") != identity(config):
        raise StateError(f"{path}: was saved from another model. Load it into that one.")
    now = time.monotonic()
    try:
        request = dict(content["request"])
        deadline = request.pop("deadline")
        request["params"] = _params(request["params"])
        request["prompt_token_ids"] = tuple(request["prompt_token_ids"])
        request["deadline"] = None if deadline is None else deadline + now
        request["embeds"] = _unpack_embeds(request["embeds"])
        request["lora"] = tuple(AdapterUse(*use) for use in request["lora"])
        request["retention"] = tuple(KeptRange(*kept) for kept in request["retention"])
        params = request["params"]
        sequences = tuple(_shifted(_unpacked(data, params), now) for data in content["sequences"])
        return RequestState(Request(**request), sequences, content["strategy"])
    except (AttributeError, KeyError, TypeError, ValueError, WorkbenchError) as error:
        raise StateError(f"{path}: a field is wrong ({error!r}). {_AGAIN}") from error


def _params(data: dict[str, Any]) -> SamplingParams:
    guided = data["guided_decoding"]
    if guided is not None:
        data = {**data, "guided_decoding": GuidedDecodingParams(**guided)}
    return SamplingParams(**data)


def identity(config: ModelConfig) -> dict[str, Any]:
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


def _pack_embeds(embeds: PromptEmbeds | None) -> dict[str, Any] | None:
    if embeds is None:
        return None
    return {"rows": pack_tensor(embeds.rows), "positions": list(embeds.positions)}


def _unpack_embeds(data: dict[str, Any] | None) -> PromptEmbeds | None:
    if data is None:
        return None
    return PromptEmbeds(unpack_tensor(data["rows"]), tuple(map(int, data["positions"])))


def _packed(data: dict[str, Any]) -> dict[str, Any]:
    """Return a sequence's data with its tensors packed."""
    kept = data["activations"]
    if kept is None:
        return data
    packed = {p: None if rows is None else pack_tensor(rows) for p, rows in kept.items()}
    return {**data, "activations": packed}


def _unpacked(data: dict[str, Any], params: SamplingParams) -> dict[str, Any]:
    """Return a sequence's data with its tensors; `ValueError` unless they belong to its tokens."""
    scores = data["prompt_logprobs"]
    if (scores is None) != (params.prompt_logprobs is None):
        raise ValueError("prompt_logprobs of a request that asked otherwise")
    if scores is not None and not 0 < len(scores) <= data["num_prompt_tokens"]:
        raise ValueError(f"prompt_logprobs of {len(scores)} tokens")
    if not params.points and data["activations"] is None:
        return data
    packed = data["activations"].items()
    kept = {p: None if rows is None else unpack_tensor(rows) for p, rows in packed}
    lengths = {0 if rows is None else len(rows) for rows in kept.values()}
    if set(kept) != set(params.points) or len(lengths) != 1:
        raise ValueError(f"activations at {list(kept)} of {lengths} tokens")
    if max(lengths) > len(data["token_ids"]):
        raise ValueError(f"activations of {max(lengths)} tokens")
    return {**data, "activations": kept}
