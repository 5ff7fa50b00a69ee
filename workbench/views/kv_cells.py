"""A block or host slot in 32 bits, as `KVLog` writes it and the browser reads it.

Bits 0-18: owner (row in the list of sequences, plus 1; 0: none; of a free block whose content can
be found, the last one), 19-26: tokens in it, 27-29: references (7: or more), 30: can be found by
its content, 31: the host has the same. `js/kv_log.js` has the same, and a test compares them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.trace.state import BlockState
from workbench.views.wire import Numbers

_OWNERS, _MOST_FILL, _MOST_REFERENCES = 0x7FFFF, 255, 7
_FILL, _REFERENCES, _FINDABLE, _ON_HOST = 19, 27, 30, 31


class Cells(NamedTuple):
    """Cells taken apart; each an array [cells]. owner: -1 where there is none; fill: 0 to 1."""

    owner: Numbers
    fill: Numbers
    references: Numbers
    findable: Numbers
    on_host: Numbers


def fill_unit(block_size: int) -> int:
    """Return what stands for a full block in a cell: its tokens, or 255 where there are more."""
    return min(block_size, _MOST_FILL)


def owner_of(cell: int) -> int | None:
    """Return the row of the sequence that a cell names."""
    return (cell & _OWNERS) - 1 if cell & _OWNERS else None


def block_cell(block: BlockState, owner: int | None, block_size: int) -> int:
    """Return a block's cell. owner: the row of one of its sequences."""
    fill = -(-block.fill * fill_unit(block_size) // block_size)
    found, on_host = block.content_hash is not None, block.slot is not None
    return _cell(owner, fill, block.references, found, on_host)


def slot_cell(content: str | None, holds: int, keeper: int | None, block_size: int) -> int:
    """Return a host slot's cell. keeper: the row of the sequence that it is kept for."""
    fill = fill_unit(block_size) if holds or content is not None else 0
    return _cell(keeper, fill, holds, content is not None, False)


def taken_apart(cells: Numbers, block_size: int) -> Cells:
    """Return what cells, uint32 [cells], say."""
    return Cells(
        (cells & _OWNERS).astype(np.int64) - 1,
        (cells >> _FILL & _MOST_FILL) / fill_unit(block_size),
        cells >> _REFERENCES & _MOST_REFERENCES,
        (cells >> _FINDABLE & 1).astype(bool),
        (cells >> _ON_HOST & 1).astype(bool),
    )


def _cell(owner: int | None, fill: int, references: int, found: bool, on_host: bool) -> int:
    return (
        (0 if owner is None else (owner + 1) & _OWNERS)
        | fill << _FILL
        | min(references, _MOST_REFERENCES) << _REFERENCES
        | found << _FINDABLE
        | on_host << _ON_HOST
    )
