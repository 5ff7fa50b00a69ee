"""Room for guesses: blocks that running sequences hold beyond their next token, as long as nobody
lacks them.

Lent to who proposes drafts and writes to the cache as it does; whatever a rejected draft leaves
behind is of the same kind. The planner takes it back before anybody is preempted or put off.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from workbench.cache import Blocks
from workbench.request import Sequence
from workbench.scheduler.books import Books


class Lends(Protocol):
    """What is needed of a scheduler."""

    blocks: Blocks
    books: Books
    step: int


def lend(scheduler: Lends, wanted: Iterable[tuple[Sequence, int]]) -> None:
    """Let the tables of running sequences hold so many tokens behind the computed ones, as far as
    blocks are free."""
    blocks = scheduler.blocks
    with scheduler.books.open("lend"):
        blocks.step = scheduler.step + 1  # the step that this is for
        for sequence, ahead in wanted:
            number, start = sequence.sequence_id, sequence.num_computed
            stop = start + ahead
            if stop <= blocks.tables[number].writable_to:
                continue
            while stop > start and blocks.lacks(number, start, stop):
                stop = (stop - 1) // blocks.block_size * blocks.block_size
            if stop > start:
                blocks.grow(number, start, stop)


def take_back(blocks: Blocks, running: Iterable[Sequence]) -> bool:
    """Take from those that decode what they hold beyond their next token; return whether a block
    came free."""
    before = blocks.num_free
    for sequence in running:
        if sequence.num_tokens - sequence.num_computed <= 1:
            blocks.shrink(sequence.sequence_id, sequence.num_computed + 1)
    return blocks.num_free > before
