"""The proof that a cache's block structure is whole, run by `BlockManager.check` and in tests.

It reads everything and changes nothing; each assertion names what is broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from workbench.cache.host import HostTier
from workbench.cache.prefix import PrefixIndex
from workbench.cache.table import BlockTable


def prove_counted(
    ref_counts: list[int],
    blank: Collection[int],
    cached: Collection[int],
    tables: Mapping[int, BlockTable],
    copies: list[tuple[int, int]],
) -> None:
    """Raise `AssertionError` unless each block is blank, cached or in use, and counted."""
    expected = Counter(b for table in tables.values() for b in table.block_ids)
    expected.update(source for source, _ in copies)
    blank_set, cached_set = set(blank), set(cached)
    used = {block for block, count in enumerate(ref_counts) if count}
    assert len(blank) == len(blank_set), "a block is blank twice"
    assert not blank_set & cached_set, "a block is blank and cached"
    assert used == set(range(len(ref_counts))) - blank_set - cached_set, (
        "a block is lost, or free and used"
    )
    assert {b: ref_counts[b] for b in used} == dict(expected), "a reference count is wrong"
    for table in tables.values():
        assert len(set(table.block_ids)) == len(table.block_ids), "a table holds a block twice"
        assert len(table.hashes) <= len(table.block_ids), "more published than allocated"


def prove_findable(prefix: PrefixIndex, blank: Collection[int], cached: Collection[int]) -> None:
    """Raise `AssertionError` unless the index names each content once, and all cached blocks."""
    findable = dict(prefix.items())
    assert len(set(findable.values())) == len(findable), "two contents name one block"
    assert all(prefix.content(b) == h for h, b in findable.items()), "index out of step"
    assert not set(blank) & set(findable.values()), "a blank block can be found"
    assert set(cached) <= set(findable.values()), "a cached block cannot be found"


def prove_host(host: HostTier, ref_counts: list[int], tables: Mapping[int, BlockTable]) -> None:
    """Raise `AssertionError` unless the host tier is whole, and in step with the device."""
    host.check()
    assert all(ref_counts[b] for b in host.restoring), "a block nobody refers to is being restored"
    assert not host.swapped.keys() & tables.keys(), "swapped out and in use"
