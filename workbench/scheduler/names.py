"""`BlockNames`: the content hashes of a prompt's full blocks, each computed once, when asked for.

A sequence that waits is looked up again in every step; its prompt never changes, so its names are
kept while it waits. Output tokens are not covered.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from typing import Any, overload

from workbench.cache.prefix import block_hash, root_hash


class BlockNames(AbstractSequence[bytes]):
    """Names of the full blocks of `token_ids`, which must not change."""

    def __init__(self, token_ids: tuple[int, ...], block_size: int, namespace: str) -> None:
        self._token_ids, self._block_size = token_ids, block_size
        self._root = root_hash(namespace)
        self._names: list[bytes] = []

    def __len__(self) -> int:
        """Number of full blocks."""
        return len(self._token_ids) // self._block_size

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: Any) -> Any:
        """Return a name, or a list of them; raise `IndexError` beyond the last full block."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        names, size = self._names, self._block_size
        while len(names) <= index:
            start = len(names) * size
            parent = names[-1] if names else self._root
            names.append(block_hash(parent, self._token_ids[start : start + size]))
        return names[index]
