"""What happens to requests and their sequences: they come, wait, run, fork, pause and end.

Stated by the engine and by the scheduler's queues.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.events.event import Event


@dataclass(slots=True)
class RequestAdded(Event):
    """A request came in as a sequence of `token_ids`: its prompt, and the output it brings along.

    state: `waiting`, `paused`, or `compiling` until its grammar is there. branch: its place among
    the request's sequences. num_cached (None: it has never run) and num_preemptions: what one that
    was restored or loaded has behind it. lora: its adapters, as a request names them. A twin
    is told of by `SequenceForked` first.
    """

    request_id: str
    sequence_id: int
    num_prompt_tokens: int
    max_tokens: int
    token_ids: tuple[int, ...]
    state: str = "waiting"
    namespace: str = ""
    branch: int = 0
    num_cached: int | None = None
    num_preemptions: int = 0
    lora: str = ""


@dataclass(slots=True)
class SequenceQueued(Event):
    """A sequence's grammar is compiled: it waits to run, or to be resumed (`paused`)."""

    sequence_id: int
    state: str = "waiting"


@dataclass(slots=True)
class SequenceForked(Event):
    """A new sequence begins with the first `num_tokens` tokens of `parent_id`, then `token_ids`.

    It waits; if it can share the parent's blocks, that it runs follows at once. branch: its place
    among the sequences of its request, which is the parent's own unless a request was forked.
    """

    request_id: str
    sequence_id: int
    parent_id: int
    num_prompt_tokens: int
    num_tokens: int
    token_ids: tuple[int, ...]
    branch: int


@dataclass(slots=True)
class SequenceExtended(Event):
    """A chooser (beam search) appended a token to a sequence, between two steps."""

    sequence_id: int
    token_id: int
    logprob: float


@dataclass(slots=True)
class SequenceAdmitted(Event):
    """A sequence runs from now on: the KV of its first `num_computed` tokens is in its blocks."""

    sequence_id: int
    num_computed: int


@dataclass(slots=True)
class PrefixAwaited(Event):
    """A sequence stays waiting while another one, which runs, computes their first `num_tokens`."""

    sequence_id: int
    leader_id: int
    num_tokens: int


@dataclass(slots=True)
class SequencePaused(Event):
    """A sequence runs no more until it is resumed; it keeps its blocks until they are needed."""

    sequence_id: int


@dataclass(slots=True)
class SequenceResumed(Event):
    """A paused sequence goes on: at once where it holds blocks and there is a place, or it waits;
    `compiling`: for its grammar first."""

    sequence_id: int
    running: bool
    compiling: bool = False


@dataclass(slots=True)
class Preempted(Event):
    """A running sequence lost its blocks and waits again; a paused one just lost them.

    kind: `swap` if the host tier keeps its KV, else `recompute`.
    """

    sequence_id: int
    cause: str
    num_computed: int
    kind: str = "recompute"


@dataclass(slots=True)
class SwappedOut(Event):
    """A sequence's first `num_tokens` tokens are kept for it on the host, a block in each slot."""

    sequence_id: int
    slots: tuple[int, ...]
    num_tokens: int


@dataclass(slots=True)
class SwappedIn(Event):
    """A swapped-out sequence starts to run again with all the KV that was kept for it."""

    sequence_id: int
    num_tokens: int


@dataclass(slots=True)
class RequestFailed(Event):
    """A sequence cannot go on, and why; it ends with reason `error`, and the others go on."""

    request_id: str
    sequence_id: int
    message: str


@dataclass(slots=True)
class RequestFinished(Event):
    """A sequence ended and its blocks were released."""

    request_id: str
    sequence_id: int
    reason: str
    num_output_tokens: int


@dataclass(slots=True)
class EngineRestored(Event):
    """The engine went back to its state after `to_step`: all requests ended, then these came."""

    to_step: int
