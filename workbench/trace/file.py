"""The trace file: gzipped JSON lines, a header first, then one line per event, then the count.

Read as data only. The last line is what proves that a file is whole.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench import events
from workbench.errors import TraceError

FORMAT, VERSION = "workbench-trace", 1

_KINDS: dict[str, type[events.Event]] = {
    name: kind
    for name, kind in vars(events).items()
    if isinstance(kind, type) and issubclass(kind, events.Event)
}
_RERECORD = "Record it again with `Trace.record(engine)` and `trace.save(path)`."


def write(path: Path, header: dict[str, Any], entries: list[tuple[float, events.Event]]) -> Path:
    """Write header and events to `path`."""
    with gzip.open(path, "wt", encoding="utf-8") as out:
        out.write(json.dumps({"format": FORMAT, "version": VERSION, **header}) + "\n")
        for seconds, event in entries:
            fields = asdict(event)
            out.write(json.dumps([round(seconds, 6), type(event).__name__, fields]) + "\n")
        out.write(json.dumps({"events": len(entries)}) + "\n")
    return path


def read(path: Path) -> tuple[dict[str, Any], list[tuple[float, events.Event]]]:
    """Return the header and events of a trace file, or raise `TraceError`."""
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
    return header, [_event(path, line) for line in lines[1:-1]]


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
        seconds, kind, fields = line
        values = {name: _frozen(value) for name, value in fields.items()}
        return float(seconds), _KINDS[kind](**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TraceError(f"{path}: an event cannot be read ({error!r}). {_RERECORD}") from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
