"""`atomic_write`: a file is there whole or not at all, whatever ends the process that writes it.

Used by whatever writes files that are read again: traces, saved requests, states of training.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a path in the same folder to write to; it takes `path`'s place when the block ends.

    If the block raises, what was at `path` stays as it was and nothing is left beside it.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
