"""What is known of a token list that grows: kept up to date, never trusted blindly.

Base of `NGrams` and `TokenCounts`. Everything in here follows from the list alone: a list that was
cut, changed or left half taken in is read again from its start.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

# So many of the last tokens taken in are compared with the list before it is believed to go on.
# Lists are only cut and appended to, and a sampler sees every length a list had when a token was
# drawn for it, so the length alone tells nearly always; the rest guards against another sampler
# having stood in meanwhile.
TAIL = 16


class Following(ABC):
    """Follows one token list."""

    def __init__(self) -> None:
        self._length = 0
        self._tail: list[int] = []

    def follow(self, token_ids: list[int]) -> bool:
        """Take in what is new in `token_ids`; return whether it was read from its start."""
        length = self._length
        anew = length == 0 or token_ids[max(length - TAIL, 0) : length] != self._tail
        # Until all is taken in nothing is known: an interrupt may land anywhere.
        self._length = 0
        if anew:
            self.restart()
            length = 0
        self.extend(token_ids, length)
        self._length, self._tail = len(token_ids), token_ids[-TAIL:]
        return anew

    @abstractmethod
    def restart(self) -> None:
        """Forget everything."""

    @abstractmethod
    def extend(self, token_ids: list[int], start: int) -> None:
        """Take in the tokens from index `start` on: there may be none."""
