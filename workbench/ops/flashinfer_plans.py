"""FlashInfer's plans: how a step's rows are cut over the GPU, worked out once for all its layers.

A wrapper holds one plan, and copies it to the GPU from pinned memory of its own, so a wrapper is
planned anew only once that copy is done: two take turns, and the host need not wait for the step
before. Ye et al., "FlashInfer: efficient and customizable attention engine for LLM inference
serving" (2025). Used by `workbench.ops.flashinfer`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from workbench.ops.triton_rows import Rows

Kind = Literal["decodes", "chunks"]
_TILE = 128  # queries that one of its programs takes at most
_TURNS = 2  # plans of a shape that are kept: the running step's, and the one that is being launched


class Shape(NamedTuple):
    """What a plan holds beside lengths; its kernels are compiled for all but heads and scale."""

    heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype
    scale: float
    window: int | None


class Pages(NamedTuple):
    """Where the blocks of S rows stand, as FlashInfer reads it.

    Row i has the blocks indices[starts[i] : starts[i + 1]] and last_lens[i] tokens in its last one.
    starts [S + 1] and last_lens [S] int32 on the host, indices int32 on the device.
    """

    starts: Tensor
    indices: Tensor
    last_lens: Tensor


def pages_of(rows: Rows, block_size: int) -> Pages:
    """Return the blocks of rows whose tables are padded, without waiting for the device."""
    assert rows.context_lens is not None, "rows of a cache have lengths"
    assert rows.block_tables is not None, "rows of a cache have tables"
    lens = torch.tensor(rows.kv_lens, dtype=torch.int32)
    counts = (lens + block_size - 1) // block_size
    starts = torch.zeros(len(lens) + 1, dtype=torch.int32)
    starts[1:] = counts.cumsum(0)
    ends = ((rows.context_lens + block_size - 1) // block_size).cumsum(0)
    at = torch.arange(int(starts[-1]), device=ends.device)
    row = torch.searchsorted(ends, at, right=True)
    # The row's first place is where the one before it ends; a table is read from its own column 0.
    column = at - torch.nn.functional.pad(ends, (1, 0))[row]
    return Pages(starts, rows.block_tables[row, column], lens - (counts - 1) * block_size)


@dataclass(slots=True)
class _Planned:
    """A wrapper, the rows that it was planned for last, and when that plan is on the device."""

    wrapper: Any
    rows: Rows | None
    copied: torch.cuda.Event


class Plans:
    """The wrappers of a backend, by what they do and for which shape, and their scratch memory.

    chunks_by: which of FlashInfer's kernels takes chunks: "fa2", which decodes share; "fa3", for
    Hopper alone, which takes minutes of many cores to compile; "auto": its own choice.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.chunks_by = "fa2"
        self._kept: dict[tuple[Kind, Shape], deque[_Planned]] = {}
        self._scratch: Tensor | None = None

    def of(self, kind: Kind, rows: Rows, shape: Shape) -> Any:
        """Return a wrapper planned for these rows: planned before if a layer already asked.

        Raises whatever FlashInfer raises where it does not compile, or takes no such shape.
        """
        kept = self._kept.setdefault((kind, shape), deque())
        for planned in kept:
            if planned.rows is rows:
                return planned.wrapper
        if len(kept) < _TURNS:
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            planned = _Planned(self._wrapper(kind, shape), None, copied)
        else:
            planned = kept.popleft()
            planned.copied.synchronize()
            planned.rows = None
        kept.append(planned)
        _plan(planned.wrapper, kind, rows, shape)
        planned.copied.record()
        planned.rows = rows
        return planned.wrapper

    def compile(self, shape: Shape) -> None:
        """Compile what decodes and chunks of a shape need, unless FlashInfer has done so before.

        Takes minutes the first time; what is compiled stays in FlashInfer's cache on the disk.
        """
        one = torch.ones(1, dtype=torch.int32, device=self.device)
        rows = Rows(None, one, one[None] - 1, 0, [1], 1, [1])
        kinds: tuple[Kind, ...] = ("decodes", "chunks")
        for kind in kinds:
            _plan(self._wrapper(kind, shape), kind, rows, shape)

    def _wrapper(self, kind: Kind, shape: Shape) -> Any:
        """Return a new wrapper; its scratch memory is shared, as calls follow each other."""
        import flashinfer

        scratch = self._scratch_for(shape)
        if kind == "chunks":
            return flashinfer.BatchPrefillWithPagedKVCacheWrapper(
                scratch, "NHD", backend=self.chunks_by
            )
        # Its decode kernel without tensor cores takes few numbers of heads per key head.
        return flashinfer.BatchDecodeWithPagedKVCacheWrapper(scratch, "NHD", use_tensor_cores=True)

    def _scratch_for(self, shape: Shape) -> Tensor:
        """Return memory for what programs of one row add up: float32 of two tiles a processor."""
        sms = torch.cuda.get_device_properties(self.device).multi_processor_count
        group = shape.heads // shape.kv_heads
        needed = 4 * group * 2 * sms * _TILE * (shape.head_dim + 1)
        needed = max(needed + (1 << 20), 128 << 20)  # what it recommends, if that is more
        if self._scratch is None or self._scratch.numel() < needed:
            self._scratch = torch.zeros(needed, dtype=torch.uint8, device=self.device)
        return self._scratch


def _plan(wrapper: Any, kind: Kind, rows: Rows, shape: Shape) -> None:
    pages = pages_of(rows, shape.block_size)
    sizes = (shape.heads, shape.kv_heads, shape.head_dim, shape.block_size)
    settings: dict[str, Any] = {
        "q_data_type": shape.dtype,
        "kv_data_type": shape.dtype,
        "sm_scale": shape.scale,
        # Theirs counts the tokens before the one that looks, ours that one too.
        "window_left": -1 if shape.window is None else shape.window - 1,
    }
    if kind == "decodes":
        wrapper.plan(*pages, *sizes, **settings)
        return
    starts = torch.zeros(len(rows.lens) + 1, dtype=torch.int32)
    starts[1:] = torch.tensor(rows.lens).cumsum(0)
    wrapper.plan(starts, *pages, *sizes, causal=True, **settings)
