"""`Workload`: requests with their arrival times, prompts by length and by what they share.

Made by `workbench.data.traces` from public traces and by `workbench.data.synthetic`; run into an
engine by `workbench.trace.run_workload`. A prompt's token ids are synthetic: equal block ids give
equal tokens, so prompts share what the recorded ones shared, and nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from workbench.describe import Described
from workbench.errors import InvalidValue

# Above the special tokens of every tokenizer in use here.
_LOWEST_ID = 16


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """One request: when it arrives (seconds from the start) and how many tokens it is.

    block_ids: what the prompt is made of, in blocks of the workload's `tokens_per_block`; its last
    one may be cut. session: which conversation it belongs to, `turn` its place there.
    """

    arrival: float
    num_prompt: int
    num_output: int
    block_ids: tuple[int, ...]
    session: int | None = None
    turn: int = 0


@dataclass(frozen=True, repr=False)
class Workload(Described):
    """Requests by arrival. seed: with a block's id it decides the block's tokens."""

    name: str
    requests: tuple[TimedRequest, ...]
    tokens_per_block: int
    seed: int = 0

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.requests)

    def __iter__(self) -> Iterator[TimedRequest]:
        """Iterate over the requests, by arrival."""
        return iter(self.requests)

    def prompt(self, request: TimedRequest, vocab_size: int) -> list[int]:
        """Return a request's token ids, all below `vocab_size`, the same every time.

        Raises `InvalidValue` for a vocabulary too small to tell prompts apart.
        """
        if vocab_size <= 2 * _LOWEST_ID:
            fix = f"Use a model of more than {2 * _LOWEST_ID} tokens."
            raise InvalidValue("vocab_size", vocab_size, "too few tokens for prompts", fix)
        ids: list[int] = []
        for block_id in request.block_ids:
            source = random.Random(f"{self.seed}-{block_id}")
            ids += source.choices(range(_LOWEST_ID, vocab_size), k=self.tokens_per_block)
        return ids[: request.num_prompt]

    def first(self, count: int) -> Workload:
        """Return the first `count` requests."""
        return replace(self, requests=self.requests[:count])

    def scaled(self, *, time: float = 1.0, tokens: float = 1.0) -> Workload:
        """Return it with arrivals `time` times as far apart and all lengths times `tokens`.

        What prompts share shrinks and grows with them, so that a long-context trace fits a small
        model. No prompt or output becomes empty. Raises `InvalidValue` unless both are above 0.
        """
        for name, factor in (("time", time), ("tokens", tokens)):
            if not 0 < factor < math.inf:
                raise InvalidValue(name, factor, "must be above 0", "1.0 leaves it as it is.")
        size = max(1, round(self.tokens_per_block * tokens))
        ratio = size / self.tokens_per_block  # of prompts: blocks must stay whole
        requests = [
            replace(
                request,
                arrival=request.arrival * time,
                num_prompt=max(1, round(request.num_prompt * ratio)),
                num_output=max(1, round(request.num_output * tokens)),
            )
            for request in self.requests
        ]
        return replace(self, requests=tuple(requests), tokens_per_block=size)

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt tokens of all requests."""
        return sum(request.num_prompt for request in self.requests)

    @property
    def num_shared_tokens(self) -> int:
        """Prompt tokens that an earlier prompt begins with as well, block by block: what an
        unlimited prefix cache would find."""
        seen: set[tuple[int, int]] = set()
        shared = 0
        for request in self.requests:
            parent = hash(())
            found, going = 0, True
            for block_id in request.block_ids:
                parent = hash((parent, block_id))
                key = (parent, block_id)
                going = going and key in seen
                found += going
                seen.add(key)
            shared += min(found * self.tokens_per_block, request.num_prompt)
        return shared

    def describe(self) -> dict[str, Any]:
        """Return the workload in numbers."""
        count, total = len(self.requests), self.num_prompt_tokens
        outputs = sum(request.num_output for request in self.requests)
        span = self.requests[-1].arrival if self.requests else 0.0
        return {
            "name": self.name,
            "requests": count,
            "seconds": round(span, 3),
            "requests/s": round(count / span, 3) if span else None,
            "prompt tokens": f"{total} ({total / max(1, count):.0f} each)",
            "output tokens": f"{outputs} ({outputs / max(1, count):.0f} each)",
            "shared": f"{self.num_shared_tokens / max(1, total):.1%} of prompt tokens",
        }
