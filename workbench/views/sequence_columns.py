"""`SequenceColumns`: the sequences of a trace and their tokens, as columns of a view's log.

A sequence gets a row when it is first met; its tokens follow in chunks as they come, and the text
of each token id once. `js/sequences.js` reads the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from workbench.trace.state import ReplayedState
from workbench.views.wire import GrowingLog

COLUMNS = {
    **dict.fromkeys(("sequence_ids", "branches", "prompt_tokens"), "I"),
    **dict.fromkeys(("chunk_sequence", "chunk_count", "token_ids", "known_ids"), "I"),
}
LISTS = ("request_ids", "known_texts")


class SequenceColumns:
    """Writes to a log that has `COLUMNS` and `LISTS` among its own.

    piece_of: what a token reads as, parts of characters as lone surrogates; None: nobody knows.
    """

    def __init__(self, log: GrowingLog, piece_of: Callable[[int], str | None]) -> None:
        self._log, self._piece_of = log, piece_of
        self.row_of: dict[int, int] = {}
        self._sent: dict[int, int] = {}  # how many of a sequence's tokens are in the log
        self._known: set[int] = set()  # token ids that were looked up

    def row(self, sequence_id: int, state: ReplayedState) -> int:
        """Return a sequence's row; the state knows it, or knew it when it was first asked for."""
        row = self.row_of.get(sequence_id)
        if row is None:
            sequence, columns = state.find(sequence_id), self._log.columns
            row = self.row_of[sequence_id] = len(self.row_of)
            columns["sequence_ids"].append(sequence_id)
            columns["branches"].append(sequence.branch)
            columns["prompt_tokens"].append(sequence.num_prompt_tokens)
            self._log.lists["request_ids"].append(sequence.request_id)
        return row

    def spell(self, sequence_ids: Iterable[int], state: ReplayedState) -> None:
        """Write down the tokens that these sequences have got since they were last spelt."""
        columns = self._log.columns
        for number in sequence_ids:
            row, sent = self.row(number, state), self._sent.get(number, 0)
            new = state.tokens[number][sent : state.find(number).num_tokens]
            if new:
                columns["chunk_sequence"].append(row)
                columns["chunk_count"].append(len(new))
                columns["token_ids"].extend(new)
                self._sent[number] = sent + len(new)
                self._explain(new)

    def _explain(self, token_ids: Iterable[int]) -> None:
        for token_id in set(token_ids) - self._known:
            self._known.add(token_id)
            piece = self._piece_of(token_id)
            if piece is not None:
                self._log.columns["known_ids"].append(token_id)
                self._log.lists["known_texts"].append(piece)
