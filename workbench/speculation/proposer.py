"""`Proposer`: whoever guesses how sequences go on. One method, asked once before each step.

A proposer is told what it may look at (`ProposalContext`) and returns a draft, or None, for each
candidate. What it says never changes what exact rules make of a request, only how fast: so a user's
own is safe to try. `needs` names what the runner keeps for it of each token on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from workbench.describe import Described
from workbench.draft import Draft
from workbench.errors import WorkbenchError
from workbench.request import Sequence
from workbench.speculation.chance import hashed
from workbench.speculation.states import States

if TYPE_CHECKING:
    from workbench.cache import KVCache
    from workbench.config import ModelConfig
    from workbench.models import DecoderLM

_PROPOSING = 0x50524F50  # keeps these draws apart from those of sampler and verifier


class ProposerFailed(WorkbenchError, RuntimeError):
    """A proposer raised, or returned what is no draft."""

    def __init__(self, name: str, problem: str) -> None:
        self.name, self.problem = name, problem
        super().__init__(f"proposer {name!r}: {problem}")


class Verified(NamedTuple):
    """A draft as it was verified (it may have been cut), and what the target said of it.

    token_ids [1 + n]: what it goes on with after the last token, and after each node. nodes: those
    that were accepted.
    """

    draft: Draft
    token_ids: tuple[int, ...]
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Candidate(Described):
    """A sequence that decodes in the next step. Look at it, change nothing.

    max_tokens, max_depth: how large and how deep its draft may be. states: rows of the tokens that
    were computed since the proposer was last asked, at each of its `needs`; None if it has none.
    verified: the sequence's draft of the step before this one; None if it had none.
    """

    sequence: Sequence
    max_tokens: int
    max_depth: int
    states: States | None = None
    verified: Verified | None = None

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output so far; the last one is what the draft follows."""
        return self.sequence.token_ids

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a generator whose numbers follow from the request's seed and its place alone."""
        seed = hashed(self.sequence.seed, _PROPOSING, self.sequence.num_output_tokens)
        return torch.Generator(device).manual_seed(seed >> 1)

    def describe(self) -> dict[str, Any]:
        """Return whose it is and its bounds."""
        bounds = f"{self.max_tokens} tokens, {self.max_depth} deep"
        return {"request": self.sequence.request.request_id, "draft": f"at most {bounds}"}


class ProposerMemory(NamedTuple):
    """What a proposer takes on the target's device, in bytes: its own weights, and what it keeps of
    the tokens of each of the cache's blocks.

    config and pass_tokens: its model's shape, and how many tokens it computes at once at most.
    """

    name: str
    weight_bytes: int
    block_bytes: int
    config: ModelConfig
    pass_tokens: int


@dataclass(frozen=True, slots=True)
class ProposalContext:
    """What a proposer may look at: the candidates, the target model and its cache."""

    step: int
    candidates: tuple[Candidate, ...]
    model: DecoderLM
    cache: KVCache = field(repr=False)


class Proposer(Protocol):
    """Guesses how sequences go on.

    It may also have `bind(model, cache)`, called when an engine takes it and raising `ConfigError`
    if these do not fit it; and `close()`, called when the engine lets go of it. Of sequences that
    have ended it learns by `candidate.sequence.finished`. What it takes on the device it may say by
    `memory(model, block_size) -> ProposerMemory`, for the memory plan, before `bind`.

    By an attribute `preparations` it may count graphs and the like that it has made: steps that
    made any took longer for it, and are no measure.

    It may write to the cache by an attribute `slots_ahead`: for so many tokens behind a candidate's
    last computed one its block table then has room, if blocks are free (`BlockTable.writable_to`).

    needs: points of the target model (see `workbench.layers.probe`; "" is the output after the
    final norm) whose rows are kept of each token and handed over once, in `Candidate.states`.
    """

    name: str
    needs: tuple[str, ...]

    def propose(self, context: ProposalContext) -> list[Draft | None]:
        """Return a draft or None for each of `context.candidates`, in order."""
