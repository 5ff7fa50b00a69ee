"""`IncrementalText`: a sequence's text as its tokens come, with stop strings cut off.

Made by `Tokenizer.stream` for each request and pushed by the scheduler when it commits a token. It
fulfils `workbench.request.TextStream`. It decides nothing: `push` only says that a stop string is
there.
"""

from __future__ import annotations

from typing import Any

from workbench.describe import Described
from workbench.models.detokenize import Detokenizer


class IncrementalText(Described):
    """Text of the tokens pushed so far.

    `text` is all of it; `take` gives it out piece by piece, never a piece that a stop string could
    still take back. After the end of the sequence, `finish` adds what waits for more tokens; then
    the text equals a decode of all ids, unless a stop string cut it (or the ids spell bytes that
    are no text: see `WindowStream`).
    """

    def __init__(
        self, detokenizer: Detokenizer, stops: tuple[str, ...] = (), include_stop: bool = False
    ) -> None:
        self._detokenizer = detokenizer
        self._stops, self._include_stop = stops, include_stop
        # One character less than the longest: what may precede new text inside a stop string.
        self._reach = max((len(stop) for stop in stops), default=1) - 1
        self._taken: list[str] = []
        self._fresh: list[str] = []  # after `_taken`; every stop string is found in here
        self._tail = ""  # the last `_reach` characters
        self._stop: str | None = None
        self._finished = False

    @property
    def text(self) -> str:
        """All text so far, cut at the stop string if one was found; reading costs its length."""
        return "".join((*self._taken, *self._fresh))

    @property
    def settled(self) -> str:
        """`text` without the end that a stop string may still take back: it only ever grows."""
        fresh = "".join(self._fresh)
        return "".join(self._taken) + fresh[: len(fresh) - self._num_held(fresh)]

    def push(self, token_id: int) -> str | None:
        """Take one token; return the stop string that it completed, or None.

        Of several, the one whose last character came first; of those the longest. Nothing may be
        pushed after a stop string or `finish`.
        """
        assert self._stop is None, "a stop string has ended the text"
        assert not self._finished, "the text was finished"
        piece = self._detokenizer.push(token_id)
        return self._append(piece) if piece else None

    def finish(self) -> None:
        """Say that no token follows: what waited becomes text, half a character as U+FFFD."""
        if self._stop is None and not self._finished:
            self._append(self._detokenizer.flush())
        self._finished = True

    def take(self) -> str:
        """Return the text since the last `take` that nothing can take back any more."""
        fresh = "".join(self._fresh)
        end = len(fresh) - self._num_held(fresh)
        self._taken.append(fresh[:end])
        self._fresh = [fresh[end:]]
        return fresh[:end]

    def copy(self) -> IncrementalText:
        """Return an independent text in the same state (for a forked or saved sequence)."""
        twin = IncrementalText(self._detokenizer.copy(), self._stops, self._include_stop)
        twin._taken, twin._fresh, twin._tail = list(self._taken), list(self._fresh), self._tail
        twin._stop, twin._finished = self._stop, self._finished
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> IncrementalText:
        """Share the tokenizer: only the state is copied."""
        return self.copy()

    def describe(self) -> dict[str, Any]:
        """Return the text, and what ended it."""
        return {"text": self.text, "stop": self._stop, "finished": self._finished}

    def _append(self, piece: str) -> str | None:
        self._fresh.append(piece)
        if not self._stops:
            return None
        recent = self._tail + piece
        self._tail = recent[-self._reach :] if self._reach else ""
        found = _first_stop(recent, self._stops)
        if found is None:
            return None
        end, self._stop = found
        surplus = len(recent) - (end if self._include_stop else end - len(self._stop))
        fresh = "".join(self._fresh)
        self._fresh = [fresh[: len(fresh) - surplus]]
        return self._stop

    def _num_held(self, fresh: str) -> int:
        """Return how many characters at the end may yet turn out to begin a stop string."""
        if self._stop is not None or self._finished or self._include_stop:
            return 0
        lengths = range(min(self._reach, len(fresh)), 0, -1)
        return next(
            (n for n in lengths if any(stop.startswith(fresh[-n:]) for stop in self._stops)), 0
        )


def _first_stop(text: str, stops: tuple[str, ...]) -> tuple[int, str] | None:
    """Return (end, stop) of the stop string completed first, the longest if several end there."""
    found = [(at + len(stop), -len(stop), stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not found:
        return None
    end, _, stop = min(found)
    return end, stop
