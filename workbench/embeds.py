"""`PromptEmbeds`: rows of numbers that stand in a prompt where token embeddings would.

A request carries one where its prompt is made of embeddings, in whole or in part (soft prompts,
images, averaged words). Made by `workbench.engine.prompts`, read by `run.inputs` step by step, and
kept while the request lives, so that a preempted sequence can be computed again.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PromptEmbeds:
    """rows [E, hidden], on the CPU, in the dtype of the model they were given to; positions: their
    E places in the prompt, rising. The prompt's token ids hold 0 there, and mean nothing.
    """

    rows: Tensor
    positions: tuple[int, ...]

    def within(self, start: int, stop: int) -> slice:
        """Return which rows lie at the positions from `start` up to `stop`."""
        return slice(bisect_left(self.positions, start), bisect_left(self.positions, stop))

    def covers(self, position: int) -> bool:
        """Whether an embedding stands at this position."""
        at = bisect_left(self.positions, position)
        return self.positions[at : at + 1] == (position,)

    def digest(self) -> str:
        """Return a name of content and places: 128 bits in hexadecimal."""
        import torch

        state = blake2b(repr((self.positions, str(self.rows.dtype))).encode(), digest_size=16)
        state.update(self.rows.contiguous().view(torch.uint8).numpy().tobytes())
        return state.hexdigest()
