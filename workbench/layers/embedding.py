"""The token embedding: `nn.Embedding` whose rows start as uninitialised memory.

A checkpoint overwrites them. With a tied head, the head's weight is the same parameter.
"""

from __future__ import annotations

from torch import nn


class Embedding(nn.Embedding):
    """Token ids [T] to rows [T, hidden] of a [vocab, hidden] table."""

    def reset_parameters(self) -> None:
        """Leave the table as it is: it comes from a checkpoint or from `init_weights`."""
