"""`Tape`: the native calls of one forward pass, recorded once and replayed by a single C call.

Recording runs the model over a backend that writes its calls down instead of making them. Results
lie in memory that the tape keeps, reused as Python lets go of them. Every call is per token, so one
tape serves any number of tokens up to those it was recorded for, in rows of any length. Anything
that torch computes in between would be missing from a replay: it ends the recording with
`NotRecordable`.

Made by `workbench.run.tapes`, the CPU's twin of CUDA graphs.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workbench.batch import ForwardContext
from workbench.errors import WorkbenchError
from workbench.ops.calls import SIGNATURES, Batch, check, make_record, replay_function
from workbench.ops.native import NO_TREES, NativeBackend, Trees

_ALIGNMENT = 64  # bytes: a cache line, and the widest register


class NotRecordable(WorkbenchError, RuntimeError):
    """A pass does something that a tape would leave out."""


class Tape:
    """Recorded calls for up to `tokens` tokens.

    num_calls: how many a replay makes. num_bytes: of the memory that their results lie in.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._memory = _Memory()
        self._records: list[ctypes.Structure] = []
        self._batches: list[Batch] = []
        self._addresses: Any = None
        self._replay = replay_function()

    @property
    def num_calls(self) -> int:
        """How many calls a replay makes."""
        return len(self._records)

    @property
    def num_bytes(self) -> int:
        """Size of the memory that results lie in."""
        return self._memory.num_bytes

    def recorder(self, backend: NativeBackend) -> NativeBackend:
        """Return a backend that writes down what it is asked for, in place of doing it."""
        return _Recorder(backend, self)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Hold the pass over `tokens` tokens that is recorded.

        Raises `NotRecordable`, saying what it was, if torch computes anything meanwhile.
        """
        with _NothingElse():  # type: ignore[no-untyped-call]
            yield
        addresses = [ctypes.addressof(record) for record in self._records]
        self._addresses = (ctypes.c_void_p * len(addresses))(*addresses)

    def replay(self, tokens: int, rows: int | None = None, trees: Trees = NO_TREES) -> None:
        """Make the calls for the first `tokens` tokens of the inputs.

        rows: in how many rows they are, each of a token if left out; where they begin and how long
        their contexts are is in the inputs. trees: the masks of these rows, see `Trees`. Raises
        what the calls would: `IndexError` for a token id outside the vocabulary.
        """
        assert 0 < tokens <= self.tokens, "more tokens than there is memory for"
        threads = torch.get_num_threads()
        for batch in self._batches:
            batch.rows, batch.tokens = tokens if rows is None else rows, tokens
            batch.threads = threads
            batch.ancestors, batch.first_tree, batch.tree_tokens, batch.tree_words = trees
        check(self._replay(self._addresses, len(self._records), tokens, threads))

    def note(self, name: str, *arguments: Any) -> int:
        """Write a call down; 0, as if it had been made and gone well."""
        place = SIGNATURES[name].rows
        if place is not None:
            rows, rest = divmod(arguments[place], self.tokens)
            if rest:
                raise NotRecordable(f"{name} of {arguments[place]} rows is not so many per token")
            arguments = (*arguments[:place], rows, *arguments[place + 1 :])
        self._records.append(make_record(name, arguments))
        return 0

    def keep(self, batch: Batch) -> None:
        """Take rows that attention reads, to say at each replay how many there are."""
        self._batches.append(batch)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return memory of the tape's own for a result."""
        return self._memory.empty(shape, dtype)


class _Recorder(NativeBackend):
    """The native backend, with its calls written down on a tape."""

    def __init__(self, backend: NativeBackend, tape: Tape) -> None:
        self.__dict__.update(backend.__dict__)
        self._tape = tape
        self._bind({name: partial(tape.note, name) for name in SIGNATURES})

    def prepare(self, ctx: ForwardContext) -> Any:
        batch = super().prepare(ctx)
        if isinstance(batch, Batch):
            self._tape.keep(batch)
        return batch

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self._tape.empty(shape, dtype)


class _Memory:
    """Chunks for results, each given out again once no tensor lies in it any more."""

    def __init__(self) -> None:
        self._free: dict[int, list[Any]] = {}
        self.num_bytes = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor; its storage holds the array that `finalize` watches."""
        size = prod(shape) * dtype.itemsize
        free = self._free.setdefault(size, [])
        chunk = free.pop() if free else self._chunk(size)
        lease = chunk[:]
        weakref.finalize(lease, free.append, chunk)
        return torch.from_numpy(lease).view(dtype).view(*shape)

    def _chunk(self, size: int) -> Any:
        self.num_bytes += size
        room = np.empty(size + _ALIGNMENT, dtype=np.uint8)
        offset = -room.ctypes.data % _ALIGNMENT
        return room[offset : offset + size]


class _NothingElse(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets torch make views, and refuses whatever would compute."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        made = _tensors(result)
        views = made and all(t.untyped_storage().data_ptr() in given for t in made)
        if func._schema.is_mutable or not views:
            raise NotRecordable(f"torch computes {func}")
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
