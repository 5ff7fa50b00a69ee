"""`Guide`: what a sequence's guide can do, whichever library or user it comes from.

Kept on a `Sequence`; asked by the sampler before it chooses, told by the scheduler of every token.
Grammars that make guides live in `workbench.guided`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Guide(Protocol):
    """Says which tokens may follow in a sequence, as guided decoding does; one per sequence."""

    def accept(self, token_id: int) -> None:
        """Take in a token that was appended; called once for each, in order.

        Raises `GuideFailed` where it is not allowed, which ends the sequence with that error.
        """

    def fill(self, row: Tensor) -> None:
        """Write what is allowed next into `row`, [ceil(V / 32)] int32 on the CPU, all bits set.

        Bit i % 32 of word i // 32 says whether token i is allowed.
        """

    def fork(self) -> Guide:
        """Return a guide in the same state that goes its own way."""

    def rollback(self, num_tokens: int) -> None:
        """Take the last tokens back."""

    @property
    def finished(self) -> bool:
        """Whether nothing but the end may follow."""
