"""What a user asks for and gets back, and the one record that travels through the engine.

A `Request` (frozen) comes in; a `Sequence` is one of its token lists on its way, written by the
scheduler alone; a `RequestOutput` goes out. Nothing here computes with tensors.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, Union

from workbench.activations import Activations
from workbench.describe import Described, Text
from workbench.embeds import PromptEmbeds
from workbench.guide import Guide
from workbench.metrics import RequestMetrics
from workbench.retention import KeptRange
from workbench.sampling_params import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

# Text, embeddings [tokens, hidden], or a list of token ids and embeddings.
Prompt: TypeAlias = Union[str, "Tensor", "Tokens[int | Tensor]"]
# `dropped`: a beam that fell out of the search; it is never among the outputs.
FinishReason = Literal["stop", "length", "abort", "error", "timeout", "dropped"]


class Status(enum.Enum):
    """Where a sequence is. A preempted one is `WAITING` again; a paused one waits for `resume`."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
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


class Chooser(Protocol):
    """Decides a sequence's tokens in the sampler's place, as beam search does."""

    def take(self, sequence: Sequence, entry: TokenLogprobs) -> None:
        """Take in what the model said after the sequence's last token; nothing is appended."""


class AdapterUse(NamedTuple):
    """A LoRA adapter that a request goes through, times a factor; `digest` says which weights the
    name stood for when the request came."""

    name: str
    scale: float
    digest: str


@dataclass(frozen=True, slots=True, repr=False)
class Request(Described):
    """One validated request. `prompt` is None where token ids were given; `priority`: smaller is
    sooner; `deadline`: when it ends as it is, in seconds of `time.monotonic`.

    `namespace` separates prefix reuse: blocks are only shared between requests of equal namespace,
    and embeddings are part of it by their content. `tenant`: on whose account it runs. `embeds`:
    what stands in place of tokens. `retention`: how long the cache keeps which tokens' blocks, by
    position. `lora`: the adapters it goes through, added up; they are part of its namespace.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    priority: int = 0
    namespace: str = ""
    deadline: float | None = None
    tenant: str = ""
    embeds: PromptEmbeds | None = field(default=None, compare=False)
    retention: tuple[KeptRange, ...] = ()
    lora: tuple[AdapterUse, ...] = ()

    @property
    def text_token_ids(self) -> tuple[int, ...]:
        """The prompt's token ids, without the places where embeddings stand."""
        ids, embeds = self.prompt_token_ids, self.embeds
        if embeds is None:
            return ids
        return tuple(token_id for i, token_id in enumerate(ids) if not embeds.covers(i))

    def describe(self) -> dict[str, Any]:
        """Return what was asked for; of what is left at its default, nothing."""
        facts: dict[str, Any] = {"request": self.request_id}
        if self.prompt is not None:
            facts["prompt"] = Text(self.prompt)
        facts |= {"prompt tokens": len(self.prompt_token_ids), "params": self.params}
        if self.lora:
            facts["lora"] = "+".join(f"{use.name}:{use.scale:g}" for use in self.lora)
        return facts


@dataclass(slots=True, eq=False, repr=False)
class Sequence(Described):
    """A token list that the engine extends. Written by the scheduler only.

    The one rule: `num_computed` catches up with `num_tokens`. `token_ids` holds prompt and output;
    the KV of the first `num_computed` of them is in the cache. `sequence_id` counts arrivals;
    `index` is its place among its request's branches, and `leader` the first of them where it is
    another: policies rank them by it, so that they stand together. `num_tracked` is how many top
    log-probabilities are noted beside each token (None: nothing). `bad_word_ids` are the request's
    bad words as tokens. `error` says why it ended so. `prompt_logprobs` (of the first tokens, as
    far as known) and `activations` are None where nobody asked.
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
    index: int = 0
    leader: Sequence | None = None
    num_tracked: int | None = None
    chooser: Chooser | None = None
    guide: Guide | None = None
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    num_computed: int = 0
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    activations: Activations | None = None

    @property
    def num_reusable(self) -> int:
        """How many first tokens need not pass through the model if their KV is in the cache: those
        of which all that was asked is known."""
        known, scores = self.num_tokens, self.prompt_logprobs
        if scores is not None and len(scores) < self.num_prompt_tokens:
            known = len(scores) - 1
        return known if self.activations is None else min(known, self.activations.num_positions)

    @property
    def awaits_guide(self) -> bool:
        """Whether its grammar is still being compiled: only then is it queued."""
        return self.guide is None and self.request.params.guided_decoding is not None

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
            "branch": self.index,
            "status": self.status.value,
            "prompt": self.num_prompt_tokens,
            "output": self.num_output_tokens,
            "computed": f"{self.num_computed}/{self.num_tokens}",
            "finish_reason": self.finish_reason,
        }


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities of the model's own distribution; a beam's are processed ones."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class CompletionOutput(Described):
    """One generated continuation; `error` says why it ended with finish_reason `error`.

    hidden_states: [prompt + output - 1, hidden] after the final norm; activations: rows for the
    same tokens by point. Both on the CPU in the model's dtype, None where nobody asked.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    logprobs: list[TokenLogprobs] | None
    error: str | None = None
    hidden_states: Tensor | None = field(default=None, compare=False)
    activations: dict[str, Tensor] | None = field(default=None, compare=False)

    @property
    def cumulative_logprob(self) -> float | None:
        """The sum of the chosen tokens' log-probabilities, where they were asked for."""
        return None if self.logprobs is None else sum(entry.logprob for entry in self.logprobs)

    def describe(self) -> dict[str, Any]:
        """Return the text and how it ended; of tensors the shapes."""
        facts = {
            "output": Text(self.text),
            "tokens": f"{len(self.token_ids)} ({self.finish_reason})",
        }
        if self.hidden_states is not None:
            facts["hidden states"] = _shape(self.hidden_states)
        if self.activations is not None:
            shapes = [f"{point} {_shape(rows)}" for point, rows in self.activations.items()]
            facts["activations"] = "\n".join(shapes)
        return facts


def _shape(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


@dataclass(frozen=True, slots=True, repr=False)
class RequestOutput(Described):
    """What a request has produced so far; `finished` says whether more will come.

    prompt_token_ids: 0 where an embedding stands. prompt_logprobs: one entry per prompt token
    computed so far, None where nobody asked; an entry is None for the first token and for
    embeddings.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    def describe(self) -> dict[str, Any]:
        """Return the request with its text."""
        facts: dict[str, Any] = {"request": self.request_id, "finished": self.finished}
        if self.prompt is not None:
            facts["prompt"] = Text(self.prompt)
        if self.prompt_logprobs is not None:
            facts["prompt logprobs"] = f"{len(self.prompt_logprobs)} tokens"
        for output in self.outputs:
            for label, value in output.describe().items():
                facts[f"{label} {output.index}"] = value
        return facts
