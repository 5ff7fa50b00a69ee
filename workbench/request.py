"""What a user asks for and gets back, and the one record that travels through the engine.

`SamplingParams` (frozen) and `Request` come in; a `Sequence` is a request's token list on its way,
written by the scheduler alone; `RequestOutput` goes out. Nothing here knows of tensors.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from workbench.config import known_keywords
from workbench.describe import Described
from workbench.errors import RequestError

FinishReason = Literal["stop", "length", "abort"]


@known_keywords(RequestError)
@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen and when it ends.

    max_tokens: new tokens at most. temperature: 0 is greedy. top_k: keep the k likeliest (None:
    all). top_p: keep the smallest set holding this probability. min_p: drop tokens less likely than
    this fraction of the likeliest. seed: fixes the draw whatever the batch. stop: strings that end
    the text (left out of it unless include_stop_str). stop_token_ids: ids that end it. ignore_eos:
    go on past the model's end token. logprobs: report this many top log-probabilities beside each
    chosen token.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled, and turn lists into tuples."""
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _tuple_of("stop", stop, str))
        object.__setattr__(
            self, "stop_token_ids", _tuple_of("stop_token_ids", self.stop_token_ids, int)
        )
        if "" in self.stop:
            raise RequestError("stop", self.stop, "an empty string would stop at once", "Drop it.")
        _whole("max_tokens", self.max_tokens, 1)
        _real(
            "temperature",
            self.temperature,
            0.0,
            math.inf,
            "0 is greedy; 1 leaves the model as it is.",
        )
        if self.top_k is not None:
            _whole("top_k", self.top_k, 1)
        _real("top_p", self.top_p, 0.0, 1.0, "1 keeps every token.", low_open=True)
        _real("min_p", self.min_p, 0.0, 1.0, "0 keeps every token.")
        if self.seed is not None:
            _whole("seed", self.seed, 0)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RequestError(name, value, f"must be a whole number of at least {least}", "Change it.")


def _real(
    name: str, value: Any, low: float, high: float, fix: str, *, low_open: bool = False
) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (
        not number
        or not (low < value if low_open else low <= value)
        or not value <= high
        or value == math.inf
    ):
        bracket = "(" if low_open else "["
        raise RequestError(name, value, f"must lie in {bracket}{low:g}, {high:g}]", fix)


def _tuple_of(name: str, values: Any, kind: type) -> tuple[Any, ...]:
    items = tuple(values) if isinstance(values, Iterable) else (values,)
    if not all(isinstance(item, kind) for item in items):
        raise RequestError(
            name, values, f"must be a sequence of {kind.__name__}", "Check the types."
        )
    return items


class Status(enum.Enum):
    """Where a sequence is. A preempted sequence is `WAITING` again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class TextStream(Protocol):
    """Turns a sequence's tokens into text as they come; see `workbench.models.tokenizer`."""

    def push(self, token_id: int) -> str | None:
        """Take one token; return the stop string that it completed, or None."""

    def finish(self) -> None:
        """Say that no token follows: what still waits becomes text. Twice is fine."""

    @property
    def text(self) -> str:
        """All text so far: never half a character, never a stop string unless asked for."""

    @property
    def settled(self) -> str:
        """`text` without the end that a stop string may still take back: it only ever grows."""


@dataclass(slots=True)
class RequestMetrics:
    """Times (seconds of `time.monotonic`) and counts of one request."""

    arrival: float
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_output_tokens: int = 0

    @property
    def queue(self) -> float | None:
        """Seconds from arrival until first scheduled."""
        return None if self.first_scheduled is None else self.first_scheduled - self.arrival

    @property
    def ttft(self) -> float | None:
        """Seconds from arrival to the first token."""
        return None if self.first_token is None else self.first_token - self.arrival

    @property
    def tpot(self) -> float | None:
        """Mean seconds per output token after the first; None before it has two."""
        if self.finished is None or self.first_token is None or self.num_output_tokens < 2:
            return None
        return (self.finished - self.first_token) / (self.num_output_tokens - 1)

    @property
    def latency(self) -> float | None:
        """Seconds from arrival to the end."""
        return None if self.finished is None else self.finished - self.arrival


@dataclass(frozen=True, slots=True)
class Request:
    """One validated request. `prompt` is None where token ids were given; `priority`: smaller is
    sooner.

    `namespace` separates prefix reuse: blocks are only shared between requests of equal namespace.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    priority: int = 0
    namespace: str = ""


@dataclass(slots=True, eq=False)
class Sequence(Described):
    """A token list that the engine extends. Written by the scheduler only.

    The one rule: `num_computed` catches up with `num_tokens`. `token_ids` holds prompt and output;
    the KV of the first `num_computed` of them is in the cache. `sequence_id` counts arrivals.
    """

    sequence_id: int
    request: Request
    token_ids: list[int]
    num_prompt_tokens: int
    metrics: RequestMetrics
    seed: int
    stop_ids: frozenset[int]
    max_num_tokens: int
    stream: TextStream | None = None
    num_computed: int = 0
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self.status is Status.FINISHED

    @property
    def output_token_ids(self) -> list[int]:
        """A copy of the tokens generated so far."""
        return self.token_ids[self.num_prompt_tokens :]

    def describe(self) -> dict[str, Any]:
        """Return where this sequence stands."""
        return {
            "request": self.request.request_id,
            "status": self.status.value,
            "prompt": self.num_prompt_tokens,
            "output": self.num_output_tokens,
            "computed": f"{self.num_computed}/{self.num_tokens}",
            "finish_reason": self.finish_reason,
        }


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities of the model's own distribution where a token was chosen."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One generated continuation."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    logprobs: list[TokenLogprobs] | None

    @property
    def cumulative_logprob(self) -> float | None:
        """The sum of the chosen tokens' log-probabilities, where they were asked for."""
        return None if self.logprobs is None else sum(entry.logprob for entry in self.logprobs)


@dataclass(frozen=True, slots=True)
class RequestOutput(Described):
    """What a request has produced so far; `finished` says whether more will come."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics = field(repr=False)

    def describe(self) -> dict[str, Any]:
        """Return the request with its text."""
        facts: dict[str, Any] = {"request": self.request_id, "finished": self.finished}
        if self.prompt is not None:
            facts["prompt"] = self.prompt
        for output in self.outputs:
            facts[f"output {output.index}"] = output.text
            facts[f"tokens {output.index}"] = f"{len(output.token_ids)} ({output.finish_reason})"
        return facts
