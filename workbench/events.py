"""Facts the engine states about itself, and the bus that carries them.

Parts emit frozen records (`if bus: bus.emit(…)`, so with no subscriber nothing is even built);
observers subscribe. Enough is said to rebuild the allocator and the scheduler of any step. A
subscriber that raises is detached with its traceback, and the engine goes on.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.describe import Described


@dataclass(frozen=True, slots=True)
class Event:
    """A fact; `step` is the engine step it belongs to (0 before the first)."""

    step: int


@dataclass(frozen=True, slots=True)
class RequestAdded(Event):
    """A request was queued as a sequence."""

    request_id: str
    sequence_id: int
    num_prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class SequenceAdmitted(Event):
    """A waiting sequence starts to run with `num_cached` tokens found in the cache."""

    sequence_id: int
    num_cached: int


@dataclass(frozen=True, slots=True)
class EngineRestored(Event):
    """The engine went back to its state after `to_step`: all requests ended, then these came."""

    to_step: int


@dataclass(frozen=True, slots=True)
class RequestFinished(Event):
    """A sequence ended and its blocks were released."""

    request_id: str
    sequence_id: int
    reason: str
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class RequestFailed(Event):
    """A sequence cannot go on, and why; it ends with reason `error`, and the others go on."""

    request_id: str
    sequence_id: int
    message: str


@dataclass(frozen=True, slots=True)
class Preempted(Event):
    """A running sequence lost its blocks and waits again; a paused one just lost them.

    kind: `swap` if the host tier keeps its KV, else `recompute`.
    """

    sequence_id: int
    cause: str
    num_computed: int
    kind: str = "recompute"


@dataclass(frozen=True, slots=True)
class SwappedIn(Event):
    """A swapped-out sequence starts to run again with all the KV that was kept for it."""

    sequence_id: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class SequencePaused(Event):
    """A sequence runs no more until it is resumed; it keeps its blocks until they are needed."""

    sequence_id: int


@dataclass(frozen=True, slots=True)
class SequenceResumed(Event):
    """A paused sequence goes on: at once where it holds blocks and there is a place, or waits."""

    sequence_id: int
    running: bool


@dataclass(frozen=True, slots=True)
class BlockAllocated(Event):
    """A free block now belongs to a sequence, at `index` of its block table."""

    block_id: int
    sequence_id: int
    index: int


@dataclass(frozen=True, slots=True)
class BlockShared(Event):
    """A sequence took a further reference on a block (prefix hit or fork)."""

    block_id: int
    sequence_id: int
    index: int


@dataclass(frozen=True, slots=True)
class BlockCopied(Event):
    """Copy-on-write: a sequence replaced a shared block of its table by a copy."""

    source: int
    block_id: int
    sequence_id: int
    index: int


@dataclass(frozen=True, slots=True)
class BlockReleased(Event):
    """A sequence gave its reference up; `num_references` are left."""

    block_id: int
    sequence_id: int
    num_references: int


@dataclass(frozen=True, slots=True)
class BlockFreed(Event):
    """Nobody refers to the block any more; `cached`: its content can still be found."""

    block_id: int
    cached: bool


@dataclass(frozen=True, slots=True)
class BlockCached(Event):
    """A full, computed block can be found by its content from now on."""

    block_id: int
    content_hash: str


@dataclass(frozen=True, slots=True)
class BlockEvicted(Event):
    """A cached, unreferenced block lost its content to make room for a sequence (None: by hand)."""

    block_id: int
    content_hash: str
    for_sequence_id: int | None


@dataclass(frozen=True, slots=True)
class BlockOffloaded(Event):
    """A block's content goes to a host slot: evicted (None), or swapped out of a sequence."""

    block_id: int
    slot: int
    sequence_id: int | None


@dataclass(frozen=True, slots=True)
class BlockRestored(Event):
    """A host slot's content comes back into a block of a sequence."""

    slot: int
    block_id: int
    sequence_id: int


@dataclass(frozen=True, slots=True)
class PrefixHit(Event):
    """A prefix lookup found `num_tokens` tokens; `reason` says what ended the match."""

    sequence_id: int
    num_tokens: int
    num_prompt_tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class PrefixMiss(Event):
    """A prefix lookup found nothing, and why."""

    sequence_id: int
    num_prompt_tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class StepPlanned(Event):
    """The batch of one step: a row per sequence, (sequence_id, start, num_new)."""

    rows: tuple[tuple[int, int, int], ...]
    num_waiting: int
    num_running: int


@dataclass(frozen=True, slots=True)
class StepDone(Event):
    """A step was committed: its new tokens as (sequence_id, token_id) and its times in seconds."""

    tokens: tuple[tuple[int, int], ...]
    seconds: dict[str, float]
    num_free_blocks: int


@dataclass(frozen=True, slots=True)
class DraftVerified(Event):
    """A sequence's draft was decided on: `accepted` are its nodes that were kept, in order, and
    `bonus_token_id` is the token that follows them. probabilities: how likely the proposer held
    each token, None where it does not say."""

    sequence_id: int
    proposer: str
    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    probabilities: tuple[float, ...] | None
    accepted: tuple[int, ...]
    bonus_token_id: int


@dataclass(frozen=True, slots=True)
class PolicyFailed(Event):
    """A user's scheduling policy raised; it was replaced by first-come-first-served."""

    policy: str
    error: str


@dataclass(frozen=True, slots=True)
class SubscriberFailed(Event):
    """A subscriber raised and was detached."""

    subscriber: str
    error: str


Subscriber = Callable[[Event], Any]


class EventBus(Described):
    """Carries events to subscribers, in order, at once. False while nobody listens."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber(event)` for each event from now on; return a function that ends it."""
        self._subscribers.append(subscriber)
        return lambda: self.unsubscribe(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Stop calling `subscriber`. Unknown subscribers are fine: it may have been detached."""
        self._subscribers = [s for s in self._subscribers if s is not subscriber]

    def __bool__(self) -> bool:
        """Whether anyone listens; guard `emit` with it so that an idle bus costs nothing."""
        return bool(self._subscribers)

    def emit(self, event: Event) -> None:
        """Give `event` to every subscriber; one that raises is detached, with a warning."""
        failed: list[tuple[Subscriber, str]] = []
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception as error:  # noqa: BLE001 - a watcher must never stop the engine
                trace = "".join(traceback.format_exception(error))
                warn(f"event subscriber {subscriber!r} detached:\n{trace}", stacklevel=3)
                failed.append((subscriber, trace))
        for subscriber, trace in failed:
            self.unsubscribe(subscriber)
            self.emit(SubscriberFailed(event.step, repr(subscriber), trace))

    def describe(self) -> dict[str, Any]:
        """Return who listens."""
        return {"subscribers": len(self._subscribers)}


def warn(message: str, stacklevel: int) -> None:
    """Warn; where warnings are made errors, write to stderr: an error in mid-step would do harm."""
    try:
        warnings.warn(message, stacklevel=stacklevel)
    except Warning:
        sys.stderr.write(f"UserWarning: {message}\n")
