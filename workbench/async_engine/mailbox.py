"""`Mailbox`: what the engine has made for one stream and its reader has not taken yet.

The engine's thread puts in, the reader takes everything at once, from whatever thread or loop it
runs on. So a slow reader finds its tokens together, the engine never waits, and what lies here is
bounded by the request's own length.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from workbench.async_engine.delta import Piece, Reader
from workbench.async_engine.waiters import TaskWaiter, Waiter
from workbench.engine.requests import RequestRecord
from workbench.models.tokenizer import Tokenizer
from workbench.request import FinishReason, RequestOutput, TokenLogprobs


@dataclass(slots=True)
class News:
    """What came since the last look: new tokens by branch, and how it all ended."""

    pieces: dict[int, Piece] = field(default_factory=dict)
    output: RequestOutput | None = None
    error: BaseException | None = None

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.pieces) or self.output is not None or self.error is not None


class Mailbox:
    """One writer, the engine's thread; one reader. `reader` is there before the first news."""

    def __init__(self) -> None:
        self.request_id: str | None = None
        self.reader: Reader | None = None
        self._lock = threading.Lock()
        self._news = News()
        self._waiter: Waiter | None = None

    # --- the engine's side --------------------------------------------------------------------

    def open(self, record: RequestRecord, tokenizer: Tokenizer | None) -> None:
        """Take note of the request, now that the engine has accepted it."""
        self.request_id = record.request.request_id
        self.reader = Reader(record.request, tokenizer)

    def put(
        self,
        branch: int,
        token_ids: list[int],
        logprobs: list[TokenLogprobs],
        reason: FinishReason | None,
    ) -> Waiter | None:
        """Add new tokens of a branch, and its end; return whoever waits for that."""
        with self._lock:
            piece = self._news.pieces.setdefault(branch, Piece())
            piece.token_ids += token_ids
            piece.logprobs += logprobs
            piece.finish_reason = reason
            return self._take_waiter()

    def finish(self, output: RequestOutput) -> Waiter | None:
        """Add the end of the request; return whoever waits for it."""
        with self._lock:
            self._news.output = output
            return self._take_waiter()

    def fail(self, error: BaseException) -> Waiter | None:
        """Add an end with an error, to be raised to the reader; return whoever waits for it."""
        with self._lock:
            self._news.error = error
            return self._take_waiter()

    @property
    def abandoned(self) -> bool:
        """Whether its reader waits on an event loop that was closed: it will never come back."""
        waiter = self._waiter
        return isinstance(waiter, TaskWaiter) and waiter.loop.is_closed()

    def _take_waiter(self) -> Waiter | None:
        waiter, self._waiter = self._waiter, None
        return waiter

    # --- the reader's side --------------------------------------------------------------------

    def take(self, waiter: Waiter) -> News | None:
        """Return the news; where there are none, note whom to wake and return None."""
        with self._lock:
            if not self._news:
                self._waiter = waiter
                return None
            news, self._news = self._news, News()
            return news
