"""Readers of public request traces: Azure LLM inference (csv) and Mooncake (jsonl), gzipped or not.

Azure: Patel et al., Splitwise (ISCA 2024): TIMESTAMP, ContextTokens, GeneratedTokens. Mooncake: Qin
et al. (FAST 2025): timestamp in ms, input_length, output_length, and hash_ids of 512-token blocks,
equal where prompts begin equally. Files are read as data, wherever a user has them.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from workbench.data.workload import TimedRequest, Workload
from workbench.errors import WorkloadError

MOONCAKE_BLOCK = 512
# Azure's say nothing of content, so no two prompts share anything.
_AZURE_BLOCK = 512
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MOONCAKE_FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")


def read_azure(path: str | Path, *, seed: int = 0) -> Workload:
    """Return the requests of an Azure trace; no two prompts have anything in common.

    Raises `WorkloadError`, which names file, line and field, for a row that cannot be read.
    """
    path, numbers = Path(path), count()
    rows: list[tuple[datetime, int, int]] = []
    with _opened(path) as source:
        reader = csv.reader(source)
        header = next(reader, None)
        if header is None or tuple(name.strip() for name in header) != _AZURE_COLUMNS:
            raise WorkloadError(path, 1, "header", header, f"is not {','.join(_AZURE_COLUMNS)}")
        for row in reader:
            if not row:
                continue
            where = path, reader.line_num
            if len(row) != len(_AZURE_COLUMNS):
                raise WorkloadError(*where, "row", row, f"has {len(row)} fields, not 3")
            num_prompt = _count(row[1], _AZURE_COLUMNS[1], *where)
            num_output = _count(row[2], _AZURE_COLUMNS[2], *where)
            rows.append((_time(row[0], *where), num_prompt, num_output))
    rows.sort(key=lambda row: row[0])
    requests = []
    for when, num_prompt, num_output in rows:
        blocks = tuple(next(numbers) for _ in range(-(-num_prompt // _AZURE_BLOCK)))
        arrival = (when - rows[0][0]).total_seconds()
        requests.append(TimedRequest(arrival, num_prompt, num_output, blocks))
    return Workload(_name(path), tuple(requests), _AZURE_BLOCK, seed)


def read_mooncake(path: str | Path, *, seed: int = 0) -> Workload:
    """Return the requests of a Mooncake trace; prompts share what their hash ids say.

    Raises `WorkloadError`, which names file, line and field, for a row that cannot be read.
    """
    path = Path(path)
    requests = []
    with _opened(path) as source:
        for line, text in enumerate(source, 1):
            if text.strip():
                requests.append(_mooncake(text, path, line))
    requests.sort(key=lambda request: request.arrival)
    return Workload(_name(path), tuple(requests), MOONCAKE_BLOCK, seed)


def _mooncake(text: str, path: Path, line: int) -> TimedRequest:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise WorkloadError(path, line, "row", text.strip(), f"is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise WorkloadError(path, line, "row", row, "is no JSON object")
    for name in _MOONCAKE_FIELDS:
        if name not in row:
            raise WorkloadError(path, line, name, None, "is missing")
    when = row["timestamp"]
    if isinstance(when, bool) or not isinstance(when, int | float) or not 0 <= when < 1e15:
        raise WorkloadError(path, line, "timestamp", when, "must be milliseconds from 0 on")
    num_prompt = _count(row["input_length"], "input_length", path, line)
    num_output = _count(row["output_length"], "output_length", path, line)
    blocks, needed = row["hash_ids"], -(-num_prompt // MOONCAKE_BLOCK)
    if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
        raise WorkloadError(path, line, "hash_ids", blocks, "must be a list of whole numbers")
    if len(blocks) != needed:
        problem = f"has {len(blocks)} blocks, and input_length={num_prompt} needs {needed}"
        raise WorkloadError(path, line, "hash_ids", blocks, problem)
    return TimedRequest(when / 1e3, num_prompt, num_output, tuple(blocks))


def _count(value: Any, column: str, path: Path, line: int) -> int:
    """Return a number of tokens, at least 1, from an int or its text."""
    number = value
    if isinstance(value, str):
        text = value.strip()
        number = int(text) if text.isascii() and text.isdigit() else None
    if type(number) is not int or number < 1:
        raise WorkloadError(path, line, column, value, "must be a whole number of at least 1")
    return number


def _time(text: str, path: Path, line: int) -> datetime:
    try:
        return datetime.fromisoformat(text.strip()).replace(tzinfo=None)
    except ValueError:
        problem = "must be a time such as 2023-11-16 18:15:46.680590"
        raise WorkloadError(path, line, "TIMESTAMP", text, problem) from None


def _name(path: Path) -> str:
    return path.name.split(".")[0]


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """Open a text file, gzipped or not; whatever is wrong with it becomes a `WorkloadError`."""
    try:
        with path.open("rb") as source:
            zipped = source.read(2) == b"\x1f\x8b"
        opener = gzip.open if zipped else open
        with opener(path, "rt", encoding="utf-8", newline="") as text:
            yield text
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise WorkloadError(path, None, "file", None, f"cannot be read: {error}") from error
