"""A trace as Chrome trace-event JSON, for ui.perfetto.dev.

Steps and their parts are slices of one track; each sequence has two, of what it does (waits, runs,
is paused) and of the steps that it is part of; batch size, tokens and KV use are counters. Times
are microseconds from the start; the header's absolute start goes into the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from workbench import events
from workbench.atomic_files import atomic_write
from workbench.events import Event, MemoryRebalanced, StepDone, StepPlanned
from workbench.trace.layout import CacheLayout
from workbench.trace.status import status_after

_STEPS, _REQUESTS, _ROWS = 1, 2, 3
Record = dict[str, Any]


def write(path: Path, header: dict[str, Any], entries: Iterable[tuple[float, Event]]) -> Path:
    """Write the trace as Chrome trace-event JSON and return the path."""
    names = ((_STEPS, "engine"), (_REQUESTS, "requests"), (_ROWS, "rows of steps"))
    records: list[Record] = [
        {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
        for pid, name in names
    ]
    writer = _Writer(CacheLayout.from_header(header).num_blocks if "groups" in header else None)
    last = 0.0
    for seconds, event in entries:
        last = 1e6 * seconds
        records += writer.records(last, event)
    records += writer.close(last)
    text = json.dumps({"traceEvents": records, "metadata": header})
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


class _Writer:
    """Knows which sequences there are and since when each is in its present state."""

    def __init__(self, num_blocks: int | None) -> None:
        self.num_blocks = num_blocks
        self._states: dict[int, tuple[str, float]] = {}  # sequence -> (state, since)
        self._plan: StepPlanned | None = None

    def records(self, now: float, event: Event) -> Iterator[Record]:
        match event:
            case MemoryRebalanced() if self.num_blocks is not None:
                self.num_blocks = event.num_blocks
            case StepPlanned():
                self._plan = event
                counts = {"rows": len(event.rows), "waiting": event.num_waiting}
                yield _counter("batch", now, counts)
                yield _counter("tokens", now, {"in": sum(row[2] for row in event.rows)})
            case StepDone():
                yield from self._step(now, event)
            case events.RequestAdded() if event.sequence_id in self._states:
                pass  # `SequenceForked` told of it
            case events.RequestAdded() | events.SequenceForked():
                yield from _named(event.sequence_id, event.request_id, event.branch)
                yield from self._turn(event.sequence_id, status_after(event, ""), now)
            case events.Preempted():
                told = {"cause": event.cause, "kind": event.kind}
                yield _instant(event.sequence_id, "preempted", now, told)
                yield from self._changed(event.sequence_id, event, now)
            case (
                events.SequenceQueued()
                | events.SequenceAdmitted()
                | events.SequencePaused()
                | events.SequenceResumed()
            ):
                yield from self._changed(event.sequence_id, event, now)
            case events.PrefixHit() | events.PrefixMiss():
                found = event.num_tokens if isinstance(event, events.PrefixHit) else 0
                why: Record = {"tokens": found, "reason": event.reason}
                yield _instant(event.sequence_id, "prefix lookup", now, why)
            case events.RequestFinished():
                yield from self._turn(event.sequence_id, None, now)
                yield _instant(event.sequence_id, event.reason, now, {})

    def close(self, now: float) -> Iterator[Record]:
        """End what is still under way at the end of the trace."""
        for number in list(self._states):
            yield from self._turn(number, None, now)

    def _changed(self, number: int, event: Event, now: float) -> Iterator[Record]:
        before = self._states.get(number, ("", 0.0))[0]
        after = status_after(event, before)
        if after != before:
            yield from self._turn(number, after, now)

    def _turn(self, number: int, state: str | None, now: float) -> Iterator[Record]:
        """End a sequence's state, and begin another unless it has ended."""
        old = self._states.pop(number, None)
        if old is not None:
            yield _slice(_REQUESTS, number, old[0], old[1], now - old[1])
        if state is not None:
            self._states[number] = state, now

    def _step(self, end: float, event: StepDone) -> Iterator[Record]:
        total = 1e6 * sum(event.seconds.values())
        start = end - total
        told = {} if event.device_seconds is None else {"device seconds": event.device_seconds}
        yield {**_slice(_STEPS, 1, f"step {event.step}", start, total), "args": told}
        for part, seconds in event.seconds.items():
            yield _slice(_STEPS, 1, part, start, 1e6 * seconds)
            start += 1e6 * seconds
        blocks = {"free": event.num_free_blocks}
        if self.num_blocks is not None:
            blocks["used"] = self.num_blocks - event.num_free_blocks
        yield _counter("blocks", end, blocks)
        yield _counter("tokens", end, {"out": len(event.tokens)})
        plan = self._plan
        if plan is None or plan.step != event.step:
            return
        for number, begin, count in plan.rows:
            name = "decode" if count == 1 else f"{begin}:{begin + count}"
            yield _slice(_ROWS, number, name, end - total, total)


def _named(number: int, request_id: str, branch: int) -> Iterator[Record]:
    name = f"{request_id}, branch {branch}" if branch else request_id
    for pid in (_REQUESTS, _ROWS):
        ids: Record = {"pid": pid, "tid": number}
        yield {**ids, "ph": "M", "name": "thread_name", "args": {"name": name}}


def _counter(name: str, now: float, values: dict[str, int]) -> Record:
    return {"ph": "C", "pid": _STEPS, "name": name, "ts": now, "args": values}


def _instant(number: int, name: str, now: float, told: dict[str, Any]) -> Record:
    base: Record = {"ph": "i", "s": "t", "pid": _REQUESTS, "tid": number}
    return {**base, "name": name, "ts": now, "args": told}


def _slice(pid: int, tid: int, name: str, start: float, duration: float) -> Record:
    return {"ph": "X", "pid": pid, "tid": tid, "name": name, "ts": start, "dur": duration}
