"""`WeightsFile`: a safetensors file as adapters are read from it, all at once.

A mapped file is read a page fault at a time, which takes three times as long as its bytes do; and
who cuts it short meanwhile ends the process. So the header is checked by safetensors, and the data
is read by threads, in pieces, into memory of its own, when the first tensor is asked for.
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from workbench.lora.threads import in_threads

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_PIECE = 4 << 20  # bytes


class _Header(NamedTuple):
    """What a file says of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return self.dtype


class WeightsFile:
    """Tensors by name, with the face of `safe_open`; a context manager as that is.

    Raises `SafetensorError` for what is no such file, and `OSError` for one that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(str(path), framework="pt", device="cpu"):
            pass  # its header is in order, and its tensors fill the file
        self._file = path.open("rb", buffering=0)
        size = int.from_bytes(self._file.read(8), "little")
        found = json.loads(self._file.read(size))
        found.pop("__metadata__", None)
        self._begin = 8 + size
        self._headers = {
            name: _Header(its["dtype"], tuple(its["shape"]), *its["data_offsets"])
            for name, its in found.items()
        }

    def __enter__(self) -> WeightsFile:
        """Return the file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; its tensors stay."""
        self._file.close()

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._headers)

    def get_slice(self, name: str) -> _Header:
        """Return what says a tensor's shape and dtype."""
        return self._headers[name]

    def get_tensor(self, name: str) -> Tensor:
        """Return a tensor: a view of the file's bytes."""
        header = self._headers[name]
        dtype, begin = _DTYPES[header.dtype], self._begin + header.begin
        data = self._whole[begin : self._begin + header.end]
        aligned = data if begin % dtype.itemsize == 0 else data.clone()
        return aligned.view(dtype).view(header.shape)

    @cached_property
    def _whole(self) -> Tensor:
        """The file's bytes, the header's too."""
        size = self._begin + max((header.end for header in self._headers.values()), default=0)
        data = np.empty(size, np.uint8)  # in huge pages, which torch does not ask for

        def read(begin: int) -> None:
            end = min(begin + _PIECE, size)
            while begin < end:
                count = os.preadv(self._file.fileno(), [data.data[begin:end]], begin)
                if not count:
                    raise OSError(f"ends at byte {begin}, before its last tensor")
                begin += count

        in_threads(read, range(0, size, _PIECE), size)
        return torch.from_numpy(data)
