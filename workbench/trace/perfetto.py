"""A trace as Chrome trace-event JSON, for ui.perfetto.dev.

Steps and their parts are slices of one track, requests of another; batch size and free blocks are
counters. Times are microseconds from the start; the header's absolute start goes into the metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.events import Event, RequestAdded, RequestFinished, StepDone, StepPlanned

_STEPS, _REQUESTS = 1, 2


def write(path: Path, header: dict[str, Any], entries: list[tuple[float, Event]]) -> Path:
    """Write the trace as Chrome trace-event JSON and return the path."""
    records: list[dict[str, Any]] = [
        {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
        for pid, name in ((_STEPS, "engine"), (_REQUESTS, "requests"))
    ]
    for seconds, event in entries:
        records.extend(_records(1e6 * seconds, event))
    path.write_text(json.dumps({"traceEvents": records, "metadata": header}), encoding="utf-8")
    return path


def _records(now: float, event: Event) -> list[dict[str, Any]]:
    match event:
        case StepDone():
            return _step(now, event)
        case StepPlanned():
            counts = {"rows": len(event.rows), "waiting": event.num_waiting}
            return [{"ph": "C", "pid": _STEPS, "name": "batch", "ts": now, "args": counts}]
        case RequestAdded() | RequestFinished():
            phase = "b" if isinstance(event, RequestAdded) else "e"
            return [
                {
                    "ph": phase,
                    "cat": "request",
                    "id": event.sequence_id,
                    "pid": _REQUESTS,
                    "name": event.request_id,
                    "ts": now,
                }
            ]
        case _:
            return []


def _step(end: float, event: StepDone) -> list[dict[str, Any]]:
    total = 1e6 * sum(event.seconds.values())
    slices = [_slice(f"step {event.step}", end - total, total)]
    start = end - total
    for part, seconds in event.seconds.items():
        slices.append(_slice(part, start, 1e6 * seconds))
        start += 1e6 * seconds
    free = {"free": event.num_free_blocks}
    return [*slices, {"ph": "C", "pid": _STEPS, "name": "blocks", "ts": end, "args": free}]


def _slice(name: str, start: float, duration: float) -> dict[str, Any]:
    return {"ph": "X", "pid": _STEPS, "tid": 1, "name": name, "ts": start, "dur": duration}
