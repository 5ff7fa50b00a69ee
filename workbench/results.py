"""What a step brings: `ForwardOutput` (of the pass), `SampledTokens` (of sampling and verifying).

Written by runner and sampler, taken in by the scheduler when it commits the step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from workbench.request import TokenLogprobs

if TYPE_CHECKING:
    from torch import Tensor


class Accepted(NamedTuple):
    """What a sequence goes on with before its new token: the draft's nodes, their tokens, and what
    is reported of these (None: nothing). lossy: the rule, where it was not an exact one."""

    nodes: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    lossy: str = ""


@dataclass(slots=True)
class SampledTokens:
    """One new token for each of `StepPlan.sampled`, in order; `logprobs` None if nobody asked.

    errors: by place in that list, why a row has no token: its request ends with that error, and its
    `token_ids` entry means nothing. accepted: by place, for the rows that verified a draft, what of
    it comes before the new token. forced: the places whose grammar allowed one token alone.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None] | None = None
    errors: dict[int, str] = field(default_factory=dict)
    accepted: dict[int, Accepted] = field(default_factory=dict)
    forced: frozenset[int] = frozenset()


class Drawing(Protocol):
    """Tokens that were drawn and may still be on their way to the host."""

    @property
    def tokens(self) -> Tensor | None:
        """The tokens [R] int64 on the device; None where the next step cannot begin with them."""

    @property
    def needs_host(self) -> str:
        """Why the host has to see them before the next ones are drawn; empty if it need not."""

    def wait(self) -> SampledTokens:
        """Return them, once they are there."""


class Settled(NamedTuple):
    """A `Drawing` that the host knows already, because of `needs_host`."""

    sampled: SampledTokens
    needs_host: str
    tokens: None = None

    def wait(self) -> SampledTokens:
        """Return them."""
        return self.sampled


@dataclass(slots=True)
class RowReport:
    """What a row's request asked to know of its new tokens, as far as nothing is known of them yet.

    prompt_logprobs: of the next prompt tokens, None where an embedding stands. activations: rows
    [n, …] on the CPU by point, of the next n positions. block_masses: of a row in
    `StepPlan.weighed`, its last token's attention to each block of its table, summed over layers
    and heads.
    """

    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    activations: dict[str, Tensor] = field(default_factory=dict)
    block_masses: list[float] = field(default_factory=list)


class PassTimer(Protocol):
    """Tells, once a step is committed, what its pass took."""

    @property
    def seconds(self) -> float | None:
        """Seconds on the device; None where it is not over."""


@dataclass(slots=True)
class ForwardOutput:
    """What a forward pass gives out.

    logits [R, vocab] of `StepPlan.sampled`, in the model's dtype, on its device; None where no row
    samples. A row with a draft of n tokens has 1 + n of them: after its last token and after each
    node. reports: by row of the plan, for rows whose requests ask for more than tokens. states:
    rows [T, …] of all tokens at each of `Runner.captured`. timer: knows what the pass took on a
    GPU, where somebody listens.
    """

    logits: Tensor | None = None
    reports: dict[int, RowReport] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)
    timer: PassTimer | None = None
