"""What goes over the wire: columns of numbers and lists of plain values in one compressed trait.

A log that grows is sent in two parts, so that a live view sends little and its state is still whole
for whoever opens the notebook later: most of it in one trait, the newest in another. The browser
reads both by `unpackColumns` and `joined` (js/buffers.js).
"""

from __future__ import annotations

import json
import struct
import zlib
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]


def packed_columns(columns: Mapping[str, Numbers], lists: Mapping[str, list[Any]]) -> bytes:
    """Return columns (1-d, any integer or float type up to 8 bytes) and JSON lists as zlib bytes.

    Layout: uint32 length of a JSON header, the header, then the columns one after the other, each
    byte plane by byte plane, which compresses twice as well: high bytes are mostly zero.
    """
    arrays = {k: np.ascontiguousarray(v, v.dtype.newbyteorder("<")) for k, v in columns.items()}
    about = {name: [a.dtype.str[1:], a.size] for name, a in arrays.items()}
    header = json.dumps({"columns": about, "lists": lists}).encode()
    packer = zlib.compressobj(1)
    parts = [packer.compress(struct.pack("<I", len(header)) + header)]
    for values in arrays.values():
        planes = values.view(np.uint8).reshape(-1, values.itemsize).T
        parts.append(packer.compress(planes.tobytes()))
    return b"".join([*parts, packer.flush()])


class GrowingLog:
    """Columns and lists that are only ever appended to, and what of them has been sent.

    columns: `array.array` by name; lists: lists of plain values by name. `parts()` returns the two
    traits: all but the newest, unchanged in most calls, and the newest.
    """

    def __init__(self, columns: Mapping[str, str], lists: tuple[str, ...] = ()) -> None:
        """columns: name -> type code of `array` ("I", "B", "f", …)."""
        self.columns: dict[str, array[Any]] = {k: array(code) for k, code in columns.items()}
        self.lists: dict[str, list[Any]] = {name: [] for name in lists}
        self._cut = dict.fromkeys([*self.columns, *self.lists], 0)
        self._old = b""

    def numbers(self, name: str, start: int = 0) -> Numbers:
        """Return a column from `start` on; a copy, so that the column may go on growing."""
        column = self.columns[name]
        values = column[start:] if start else column  # of a long log, the tail alone
        return np.frombuffer(values.tobytes(), dtype=np.dtype(column.typecode))

    def parts(self) -> tuple[bytes, bytes]:
        """Return (old, new). The old part is packed anew each time that the log has doubled."""
        sizes = {k: len(v) for k, v in [*self.columns.items(), *self.lists.items()]}
        if sum(sizes.values()) > 2 * sum(self._cut.values()):
            self._cut, everything = sizes, dict.fromkeys(sizes, 0)
            self._old = self._pack(everything)
        return self._old, self._pack(self._cut)

    def _pack(self, start: Mapping[str, int]) -> bytes:
        columns = {name: self.numbers(name, start[name]) for name in self.columns}
        return packed_columns(columns, {k: v[start[k] :] for k, v in self.lists.items()})
