"""Logits processors that users write: called so that whatever they do stays with its owner.

A request's own processor that fails ends that request; a processor of the whole batch belongs to
nobody, so it fails the step with `ProcessorFailed`. Called by `Processing`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.errors import ProcessorFailed
from workbench.interrupts import exposed
from workbench.request import Sequence
from workbench.sample.params import to_device

# (logits [R, V] float32, the R sequences) -> logits [R, V]
BatchProcessor = Callable[[Tensor, list[Sequence]], Tensor]


class UserProcessors:
    """The `logits_processors` of a batch's rows that have any."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, Sequence]] = []

    def arrange(self, sequences: list[Sequence], vocab_size: int, device: torch.device) -> bool:
        """Take in a batch's sequences, in row order; return whether any has processors."""
        rows = enumerate(sequences)
        self._rows = [(i, s) for i, s in rows if s.request.params.logits_processors]
        return bool(self._rows)

    def apply(self, logits: Tensor, failed: dict[int, str]) -> None:
        """Call each row's processors in order and put what they return in place.

        logits: [R, V] float32. failed: gets, by row, what went wrong; such a row stays as it was.
        """
        made: list[tuple[int, str, Tensor]] = []  # row, whose, result: of every call
        last: dict[int, Tensor] = {}
        for row, sequence in self._rows:
            result = logits[row]
            for place, processor in enumerate(sequence.request.params.logits_processors):
                title = f"logits_processors[{place}] ({name_of(processor)})"
                call = _Call(processor, list(sequence.token_ids), result.clone())
                if call.problem is not None:
                    failed[row] = f"{title}: {call.problem}"
                    break
                result = call.result
                made.append((row, title, result))
            else:
                last[row] = result
        self._refuse_nan(logits, made, failed)
        rows = [row for row in last if row not in failed]
        if rows:
            index = to_device(torch.tensor(rows), logits.device)
            logits.index_copy_(0, index, torch.stack([last[row] for row in rows]))

    def _refuse_nan(
        self, logits: Tensor, made: list[tuple[int, str, Tensor]], failed: dict[int, str]
    ) -> None:
        """Note the first call of each row that brought NaN in: one wait for the device in all."""
        if not made:
            return
        before = logits[[row for row, _ in self._rows]].isnan().any(dim=1)
        after = torch.stack([result for _, _, result in made]).isnan().any(dim=1)
        before_nan, after_nan = before.tolist(), after.tolist()
        given = {row for (row, _), nan in zip(self._rows, before_nan, strict=True) if nan}
        for (row, title, _), nan in zip(made, after_nan, strict=True):
            if nan and row not in given:
                given.add(row)
                failed[row] = f"{title}: returned NaN"


class _Call:
    """One call of a row's processor: its result, or what was wrong with it."""

    def __init__(self, processor: Callable[..., Any], *args: Any) -> None:
        logits: Tensor = args[-1]
        self.problem: str | None = None
        try:
            with exposed():
                result = processor(*args)
        except Exception as error:  # noqa: BLE001 - user code
            self.problem = f"raised {last_line(error)}"
            return
        self.problem = unlike(result, logits)
        if self.problem is None:
            self.result: Tensor = result.detach()


def apply_to_batch(
    processors: tuple[BatchProcessor, ...], logits: Tensor, sequences: list[Sequence]
) -> Tensor:
    """Return logits [R, V] float32 after every processor; raise `ProcessorFailed` naming a bad one.

    Each may change the logits that it is given, which are nobody else's.
    """
    for processor in processors:
        try:
            with exposed():
                result = processor(logits, list(sequences))
        except Exception as error:
            raise ProcessorFailed(name_of(processor), f"raised {last_line(error)}") from error
        problem = unlike(result, logits)
        if problem is not None:
            raise ProcessorFailed(name_of(processor), problem)
        # A copy: the processor may have kept what it returned.
        logits = result.detach().clone(memory_format=torch.contiguous_format)
    return logits


def unlike(result: Any, logits: Tensor) -> str | None:
    """Return how a processor's result differs in kind from the logits it got; None: it does not."""
    if not isinstance(result, Tensor):
        return f"returned {type(result).__name__}, not a tensor"
    for name in ("shape", "dtype", "device", "layout"):
        got, wanted = getattr(result, name), getattr(logits, name)
        if got != wanted:
            shown = [tuple(x) if isinstance(x, torch.Size) else x for x in (got, wanted)]
            return f"returned {name} {shown[0]} for logits of {shown[1]}"
    return None


def last_line(error: BaseException) -> str:
    """Return the last line of an error's traceback."""
    return traceback.format_exception_only(error)[-1].strip()


def name_of(processor: Any) -> str:
    """Return how a callable is shown."""
    return getattr(processor, "__name__", type(processor).__name__)
