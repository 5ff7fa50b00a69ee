"""`CompanionKV`: what a second model of the same tokens keeps of them, in a cache's own blocks.

For a draft model. A block then holds both models' keys and values of its tokens, so that one
allocator and one prefix index serve both: what is shared, copied, forked, preempted or evicted is
so for the two at once. The second model computes when it is asked to, and mostly less than the
first: so each block is known by the tokens of it that were, and nothing else is taken for computed.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import TYPE_CHECKING, Any

from workbench.cache.groups import groups_of
from workbench.cache.joint import JointBlocks
from workbench.cache.kv import KVCache
from workbench.cache.prefix import common_length
from workbench.cache.table import BlockTable
from workbench.describe import human_bytes

if TYPE_CHECKING:
    from workbench.models.base import DecoderLM


class CompanionKV(KVCache):
    """A second model's tensors over the blocks of `cache`, of its groups the first.

    Keys and values are of the model's dtype, on its device. Where all layers of the cache's own
    model have a window, what that let go of is missing here too.
    """

    def __init__(self, cache: KVCache, model: DecoderLM) -> None:
        """Allocate the tensors, and join the cache."""
        self.first = cache.blocks.groups[0]
        self.groups = groups_of(model.config)
        count = len(self.groups)
        self.blocks = self.first if count == 1 else JointBlocks([self.first] * count)
        self.companions, self.host_memory = [], None
        weight = next(model.parameters())
        self._beside = cache
        self.allocate(weight.dtype, weight.device)
        cache.companions.append(self)

    def allocate(self, dtype: Any, device: Any) -> None:
        """Make the tensors, for as many blocks as the cache has now; nothing is computed yet."""
        self._computed: dict[int, tuple[int, list[int]]] = {}  # block: its birth, and its tokens
        super().allocate(dtype, device)

    @staticmethod
    def block_bytes(model: DecoderLM, block_size: int) -> int:
        """Return how many bytes a block takes beside the cache's own."""
        return KVCache.bytes_per_block(model.config, block_size, next(model.parameters()).dtype)

    def tokens_of(self, block_id: int) -> list[int]:
        """Return the first tokens of a block that are computed here; none where it has been given
        out anew since."""
        birth, tokens = self._computed.get(block_id, (-1, []))
        return tokens if birth == self.first.pool.births[block_id] else []

    def num_computed(self, table: BlockTable, token_ids: Tokens[int], known: int = 0) -> int:
        """Return how many first tokens of a sequence are computed here, or gone with a window.

        known: so many are known to be, of this table.
        """
        size = self.block_size
        computed = max(known, table.first * size)
        for index in range(computed // size, table.stop):
            start = index * size
            wanted = token_ids[start : start + size]
            here = self.tokens_of(table.block_ids[table.place(index)])
            alike = len(here) if here == wanted else common_length(here, wanted)
            computed = max(computed, start + alike)
            if alike < size:
                break
        return computed

    def cut(self, table: BlockTable, num_tokens: int) -> None:
        """Forget what is computed behind the first `num_tokens` tokens: it is about to be written
        over, or rests on what is."""
        size = self.block_size
        for index in range(num_tokens // size, table.stop):
            block_id = table.block_ids[table.place(index)]
            kept = self.tokens_of(block_id)[: max(0, num_tokens - index * size)]
            self._note(block_id, kept)

    def note(self, table: BlockTable, token_ids: Tokens[int], start: int, stop: int) -> None:
        """Note that tokens `start` to `stop` - 1 are computed, right behind what was known."""
        size = self.block_size
        for index in range(start // size, -(-stop // size)):
            block_id, begin = table.block_ids[table.place(index)], index * size
            kept = self.tokens_of(block_id)[: max(0, start - begin)]
            assert len(kept) == max(0, start - begin), "tokens before these are not computed"
            new = token_ids[max(start, begin) : min(stop, begin + size)]
            self._note(block_id, [*kept, *new])

    def _note(self, block_id: int, tokens: list[int]) -> None:
        if tokens:
            self._computed[block_id] = self.first.pool.births[block_id], tokens
        else:
            self._computed.pop(block_id, None)

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copy blocks, and what is known of them."""
        super().copy_blocks(copies)
        for source, destination in copies:
            if source in self.first.pool.ids:
                self._note(destination, list(self.tokens_of(source)))

    def check(self) -> None:
        """Raise `AssertionError` if more is computed of a block than it holds."""
        sizes = [len(tokens) for _, tokens in self._computed.values()]
        assert all(0 < size <= self.block_size for size in sizes), (
            "a block of no or too many tokens"
        )
        assert self._computed.keys() <= set(self.first.pool.ids), "a block that is not there"

    def close(self) -> None:
        """Leave the cache and give the memory back."""
        if self in self._beside.companions:
            self._beside.companions.remove(self)
        self.release()

    def describe(self) -> dict[str, Any]:
        """Return the size, and how much is computed."""
        blocks = [self.tokens_of(block_id) for block_id in self._computed]
        return {
            "beside": f"{self.first.num_blocks} blocks of {self.block_size}",
            "memory": human_bytes(self.num_bytes),
            "dtype": str(self.tensors[0].dtype).removeprefix("torch."),
            "computed": f"{sum(map(len, blocks))} tokens, {sum(map(bool, blocks))} blocks",
        }
