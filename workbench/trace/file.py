"""The trace file: gzipped JSON lines, a header first, then one line per event, then the count.

Read as data only. The last line is what proves that a file is whole.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench import events
from workbench.atomic_files import atomic_write
from workbench.errors import TraceError
from workbench.trace.log import EventLog, field_names

FORMAT, VERSION = "workbench-trace", 2

_KINDS: dict[str, type[events.Event]] = {
    name: kind
    for name, kind in vars(events).items()
    if isinstance(kind, type) and issubclass(kind, events.Event)
}
_NAMES = {kind: field_names(kind) for kind in _KINDS.values()}
_RERECORD = "Record it again with `Trace.record(engine)` and `trace.save(path)`."


def write(path: Path, header: dict[str, Any], seconds: Iterable[float], log: EventLog) -> Path:
    """Write header, events and the time of each to `path`, whole or not at all; return it."""
    with (
        atomic_write(path) as partial,
        partial.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw) as zipped,  # which would name the partial file
        io.TextIOWrapper(zipped, encoding="utf-8") as out,
    ):
        out.write(json.dumps({"format": FORMAT, "version": VERSION, **header}) + "\n")
        for place, when in enumerate(seconds):
            kind, row = log.row(place)
            told = dict(zip(_NAMES[kind], row, strict=True))
            out.write(json.dumps([round(when, 6), kind.__name__, told]) + "\n")
        out.write(json.dumps({"events": len(log)}) + "\n")
    return path


def read(path: Path) -> tuple[dict[str, Any], array[float], EventLog]:
    """Return a trace file's header, times and events, or raise `TraceError`."""
    lines = _lines(path)
    header = lines[0] if lines else None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise TraceError(f"{path}: not a workbench trace. {_RERECORD}")
    if header.get("version") != VERSION:
        version = header.get("version")
        raise TraceError(f"{path}: trace version {version}, this reads {VERSION}. {_RERECORD}")
    last = lines[-1]
    if not isinstance(last, dict) or last.get("events") != len(lines) - 2:
        raise TraceError(f"{path}: truncated after {len(lines) - 1} events. {_RERECORD}")
    del header["format"], header["version"]
    pairs = [_event(path, line) for line in lines[1:-1]]
    return header, array("d", [when for when, _ in pairs]), EventLog(event for _, event in pairs)


def _lines(path: Path) -> list[Any]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as source:
            return [json.loads(line) for line in source]
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file. {_RERECORD}") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise TraceError(f"{path}: truncated or foreign ({error}). {_RERECORD}") from error


def _event(path: Path, line: Any) -> tuple[float, events.Event]:
    try:
        seconds, kind, told = line
        values = {name: _frozen(value) for name, value in told.items()}
        return float(seconds), _KINDS[kind](**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TraceError(f"{path}: an event cannot be read ({error!r}). {_RERECORD}") from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
