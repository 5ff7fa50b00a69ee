"""Into how many parts the keys of a step's rows are cut: few numbers, as each is a graph's.

Chosen from lengths that the host knows, once a step, by the Triton backend.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class Splits:
    """The choice for a GPU of so many multiprocessors."""

    def __init__(self, num_sms: int) -> None:
        from workbench.kernels.paged_decode_splits import choose_splits
        from workbench.kernels.prefill_splits import choose_chunk_splits

        self.num_sms = num_sms
        self._choose, self._choose_chunks = lru_cache(choose_splits), choose_chunk_splits

    def of_decodes(self, lens: Sequence[int], kv: Tensor) -> int:
        """Return the parts of decodes over a layer's `kv`.

        Lengths are rounded up a little, so that most steps find the choice made.
        """
        if not lens:
            return 1
        rows, heads = len(lens), kv.shape[3]
        longest, mean = (64 * -(-n // 64) for n in (max(lens), -(-sum(lens) // rows)))
        chosen = self._choose(rows, heads, longest, rows * mean, self.num_sms)
        return _SPLITS[bisect_right(_SPLITS, chosen) - 1]

    def of_chunks(self, lens: Sequence[int], kv: Tensor, num_tokens: int) -> int:
        """Return the parts of rows of these lengths with `num_tokens` new tokens in all."""
        longest = max(lens, default=0)
        return self._choose_chunks(num_tokens, len(lens), kv.shape[3], longest, self.num_sms)


class Uncut(Splits):
    """No cut: the order of a sum is a context's own, whatever the batch."""

    def of_decodes(self, lens: Sequence[int], kv: Tensor) -> int:
        """Return 1."""
        return 1

    def of_chunks(self, lens: Sequence[int], kv: Tensor, num_tokens: int) -> int:
        """Return 1."""
        return 1
