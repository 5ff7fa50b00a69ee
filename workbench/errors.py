"""Typed errors: each says which field is wrong, what its value was, and how to mend it.

Raised by every module for a user's mistake, always before anything is allocated. An `assert` is
kept for our own bugs. Nothing here is ever raised to steer control flow inside the engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class WorkbenchError(Exception):
    """The base of every error this package raises on purpose; it travels between processes."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what the error holds: a subclass's constructor takes other arguments."""
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(
    kind: type[WorkbenchError], args: tuple[Any, ...], state: dict[str, Any]
) -> WorkbenchError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class InvalidValue(WorkbenchError, ValueError):
    """One field holds a value that cannot work.

    Attributes: `field` (dotted name), `value` (as given), `problem` (one clause), `fix` (what to
    do).
    """

    def __init__(self, field: str, value: Any, problem: str, fix: str) -> None:
        self.field, self.value, self.problem, self.fix = field, value, problem, fix
        super().__init__(f"{field}={_short(value)}: {problem}. {fix}")


class ConfigError(InvalidValue):
    """A setting of a part or of the engine cannot work."""


class RequestError(InvalidValue):
    """A request or its sampling parameters cannot work; nothing was queued."""


class UnknownRequest(WorkbenchError, KeyError):
    """No request of this id is known to the engine (never added, or already forgotten)."""

    def __init__(self, request_id: str, known: Iterable[str]) -> None:
        self.request_id = request_id
        known = list(known)
        shown = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
        self.message = (
            f"request_id={request_id!r}: not a request of this engine. Known: {shown or 'none'}"
        )
        super().__init__(self.message)

    def __str__(self) -> str:
        """`KeyError` would show the message quoted."""
        return self.message


class RequestFinished(WorkbenchError, RuntimeError):
    """The request has already ended, so it cannot be aborted or changed."""

    def __init__(self, request_id: str, finish_reason: str) -> None:
        self.request_id, self.finish_reason = request_id, finish_reason
        super().__init__(
            f"request_id={request_id!r}: already finished ({finish_reason}). "
            "Check `engine.output(request_id).finished` first."
        )


class CheckpointError(WorkbenchError):
    """A checkpoint cannot be loaded; `problems` lists every fault found, not only the first."""

    kind = "checkpoint"

    def __init__(self, path: Any, problems: Iterable[str], fix: str) -> None:
        self.path, self.problems, self.fix = str(path), list(problems), fix
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"{self.kind} {path}: {len(self.problems)} problem(s){lines}\n{fix}")


class AdapterError(CheckpointError):
    """A LoRA adapter cannot be read, or does not fit the model; `problems` lists every fault."""

    kind = "adapter"


class AdapterInUse(WorkbenchError, RuntimeError):
    """Unfinished requests go through the adapter, so that it cannot be unloaded yet."""

    def __init__(self, name: str, request_ids: Iterable[str]) -> None:
        self.name, self.request_ids = name, list(request_ids)
        shown = ", ".join(self.request_ids[:8]) + (", …" if len(self.request_ids) > 8 else "")
        super().__init__(
            f"adapter={name!r}: in use by {len(self.request_ids)} request(s): {shown}. Let them "
            "end, abort them, or unload with wait=True: it goes when they have ended."
        )


class ProcessorFailed(WorkbenchError, RuntimeError):
    """A logits processor of the whole batch failed, and with it the step: no row owns it.

    Nothing was committed: swap the sampler and step again.
    """

    def __init__(self, processor: str, problem: str) -> None:
        self.processor, self.problem = processor, problem
        super().__init__(
            f"Sampler(processors=…), {processor}: {problem}. No token was chosen; mend it, "
            "`engine.swap(sampler=…)` and step again."
        )


def telling_line(error: BaseException) -> str:
    """Return the line of an error's text that says most: a compiler's last, CUDA's own words.

    torch puts general advice behind those.
    """
    lines = str(error).strip().splitlines() or [""]
    return next((line for line in lines if "CUDA error" in line), lines[-1])


class KernelFailed(WorkbenchError, RuntimeError):
    """A kernel raised in a step; `kernel` and `shapes` say which, and on what.

    Nothing of the step was committed, and `generate` drops the requests of its batch. After an
    error that breaks the device's context (an illegal address) only a new process helps; after any
    other the engine can go on with another kernel or backend, or be closed and built anew.
    """

    def __init__(
        self, kernel: str, shapes: str, error: BaseException, fix: str | None = None
    ) -> None:
        self.kernel, self.shapes = kernel, shapes
        swap = f'`engine.swap(kernel="{kernel}")` puts the shipped one back; or swap the backend.'
        super().__init__(
            f"kernel {kernel}({shapes}): {type(error).__name__}: {telling_line(error)[:300]}. "
            f"{fix or swap}"
        )


class GuideFailed(WorkbenchError, RuntimeError):
    """A guide cannot go on: its library gave up on the grammar, or a token is not allowed.

    Where a batch was masked, `rows` are the rows concerned. The others are well: abort the requests
    of these rows and step again.
    """

    def __init__(self, problem: str, rows: Iterable[int] = ()) -> None:
        self.problem, self.rows = problem, list(rows)
        where = f" (row(s) {', '.join(map(str, self.rows))})" if self.rows else ""
        super().__init__(f"guided decoding{where}: {problem}. Abort the request(s) concerned.")


class MissingExtra(WorkbenchError, ImportError):
    """A part of the package needs libraries that are not installed."""

    def __init__(self, part: str, library: str, extra: str) -> None:
        self.part, self.library, self.extra = part, library, extra
        super().__init__(
            f"{part} needs {library}, which is not installed. "
            f"Install it with: pip install 'llm-workbench[{extra}]'"
        )


class WorkloadError(InvalidValue):
    """A workload file cannot be read; says in which line (None: the file as a whole) and field."""

    def __init__(self, path: Any, line: int | None, column: str, value: Any, problem: str) -> None:
        self.path, self.line, self.column = str(path), line, column
        place = column if line is None else f"line {line}, {column}"
        super().__init__(f"{path}: {place}", value, problem, "Mend the file, or take the line out.")


class TraceError(WorkbenchError, ValueError):
    """A trace file is truncated, foreign or of another version."""


class StateError(WorkbenchError, ValueError):
    """A saved request is damaged, foreign, or belongs to another model."""


class EngineClosed(WorkbenchError, RuntimeError):
    """The engine was closed and its memory given back; build a new one."""


class EngineDraining(WorkbenchError, RuntimeError):
    """`AsyncEngine.drain()` was called: it finishes what it has and takes nothing new."""

    def __init__(self) -> None:
        super().__init__("the engine is being drained; `resume()` makes it take requests again")


class QueueFull(WorkbenchError, RuntimeError):
    """As many requests as `max_pending` allows are unfinished, and the caller would not wait."""

    def __init__(self, max_pending: int) -> None:
        self.max_pending = max_pending
        super().__init__(
            f"max_pending={max_pending} requests are unfinished. Try again later, leave out "
            "`wait=False` to wait in line, or raise max_pending."
        )


class RequestFailed(WorkbenchError, RuntimeError):
    """A step failed with this request in it; `__cause__` is what the step raised.

    The request was ended and its blocks are free; the engine goes on with the others.
    """

    def __init__(self, request_id: str, cause: BaseException) -> None:
        self.request_id, self.__cause__ = request_id, cause
        super().__init__(
            f"request_id={request_id!r}: a step it was part of failed with "
            f"{type(cause).__name__}: {cause}"
        )


def _short(value: Any, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
