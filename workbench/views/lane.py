"""`Lane`: one sequence of a run as `RunLog` follows it, and the numbers that its columns hold.

A sequence that was restored is a lane of its own, because its tokens are made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Maker(IntEnum):
    """Who made a token, as in `workbench.trace.TokenFact`. js/run_log.js has the same numbers."""

    PROMPT = 0
    SAMPLED = 1
    DRAFTED = 2  # guessed by a proposer, accepted by the model
    CHOSEN = 3  # by beam search, between two steps
    BROUGHT = 4  # output of an earlier run, that came with the request
    FORCED = 5  # the only one that its grammar allowed


class State(IntEnum):
    """What a sequence does from some moment on. js/run_log.js has the same numbers."""

    COMPILING = 1  # its grammar
    WAITING = 2
    AWAITING_PREFIX = 3  # that a running sequence computes
    PREEMPTED = 4  # lost its blocks, waits again
    PAUSED = 5
    RUNNING = 6
    ENDED = 7


class Work(IntEnum):
    """What a row of a batch does. js/run_log.js has the same numbers."""

    DECODE = 1
    VERIFY = 2  # a token and the draft after it
    PREFILL = 3
    RECOMPUTE = 4  # of KV that was there before and was lost


@dataclass(slots=True)
class Lane:
    """A sequence. number: its place among the lanes. furthest: tokens whose KV was computed."""

    number: int
    sequence_id: int
    request_id: str
    branch: int
    num_prompt_tokens: int
    num_tokens: int = 0
    furthest: int = 0
    admitted: bool = False
    state: State | None = None

    @property
    def name(self) -> str:
        """The request's id, and which branch of it."""
        return f"{self.request_id}.{self.branch}" if self.branch else self.request_id

    def work(self, start: int, num_new: int, num_drafted: int) -> Work:
        """Return what computing `num_new` tokens from position `start` on is."""
        if num_drafted:
            return Work.VERIFY
        if start < self.furthest:
            return Work.RECOMPUTE
        decodes = num_new == 1 and start >= self.num_prompt_tokens
        return Work.DECODE if decodes else Work.PREFILL
