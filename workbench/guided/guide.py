"""`Guide`: where one sequence stands in its grammar, and which tokens may come next.

Made by `CompiledGrammar.start`, one for each sequence. The sampler calls `fill` before it chooses,
the scheduler `accept` once for each token it appends; speculation goes ahead with `try_accept` and
comes back with `rollback`. End tokens are dealt with here, so that both libraries behave alike:
one is allowed exactly where the grammar accepts, and nothing follows it.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workbench.describe import Described
from workbench.errors import GuideFailed
from workbench.guided.vocabulary import Vocabulary
from workbench.sample.bitmask import allocate_bitmask

Words = NDArray[np.uint32]
UNSPELLED = "no token of the vocabulary spells what must follow"


class Matcher(Protocol):
    """One library's state. It sees text tokens only, never an end token."""

    @property
    def accepting(self) -> bool:
        """Whether the text so far is complete."""

    @property
    def problem(self) -> str:
        """Why the library gave up, in its words; empty while it is well."""

    def accept(self, token_id: int) -> bool:
        """Take a token if it is allowed; else leave the state as it is and return False."""

    def rollback(self, num_tokens: int) -> None:
        """Take the last tokens back."""

    def fork(self) -> Matcher:
        """Return an independent matcher in equal state."""

    def fill(self, mask: Tensor) -> None:
        """Write the words [words] of the allowed tokens, end tokens where accepting."""


class Guide(Described):
    """Walks one sequence through a grammar. Not thread-safe; forks are independent of each other.

    backend: the library behind it. num_tokens: tokens accepted so far, an end token included.
    """

    def __init__(self, matcher: Matcher, vocabulary: Vocabulary, backend: str) -> None:
        self._matcher, self._vocabulary, self.backend = matcher, vocabulary, backend
        self.num_tokens = 0
        self._ended = False

    def accept(self, token_id: int) -> None:
        """Take the token that the sequence goes on with.

        Raises `GuideFailed`, with the state unchanged, if the grammar does not allow it.
        """
        if not self.try_accept(token_id):
            reason = self._matcher.problem or f"token {token_id} is not allowed here"
            raise GuideFailed(reason)

    def try_accept(self, token_id: int) -> bool:
        """Take a token if the grammar allows it; return whether it did.

        A token may be allowed although its bit is not set: where llguidance knows what text must
        follow, its masks hold only the tokens that the tokenizer itself would write it with.
        """
        if self._ended or not 0 <= token_id < self._vocabulary.vocab_size:
            return False
        if token_id in self._vocabulary.eos_token_ids:
            accepted = self._ended = self._matcher.accepting
        else:
            # A token without bytes is special: no text holds it.
            known = bool(self._vocabulary.tokens[token_id])
            accepted = known and self._matcher.accept(token_id)
        self.num_tokens += accepted
        return accepted

    def rollback(self, num_tokens: int) -> None:
        """Take the last `num_tokens` accepted tokens back."""
        assert 0 <= num_tokens <= self.num_tokens, "no more tokens to take back than were accepted"
        if num_tokens == 0:
            return
        self.num_tokens -= num_tokens
        text_tokens = num_tokens - self._ended
        self._ended = False
        if text_tokens:
            self._matcher.rollback(text_tokens)

    def fork(self) -> Guide:
        """Return an independent guide in equal state."""
        twin = Guide(self._matcher.fork(), self._vocabulary, self.backend)
        twin.num_tokens, twin._ended = self.num_tokens, self._ended
        return twin

    def fill(self, mask: Tensor) -> None:
        """Write which tokens may follow: mask [words] int32, contiguous, on the CPU.

        After an end token only end tokens are allowed, so that a row sampled once too often is
        harmless. Raises `GuideFailed` if the library gives up, or if no token can follow, which
        happens where the vocabulary cannot spell what the grammar asks for.
        """
        words: Words = mask.numpy().view(np.uint32)
        if self._ended:
            words[:] = 0
            for token_id in self._vocabulary.eos_token_ids:
                words[token_id // 32] |= np.uint32(1 << token_id % 32)
            return
        self._matcher.fill(mask)
        if self._matcher.problem:
            raise GuideFailed(self._matcher.problem)
        spare = self._vocabulary.vocab_size % 32
        if spare:
            words[-1] &= np.uint32((1 << spare) - 1)
        if not words.any():
            raise GuideFailed(UNSPELLED)

    @property
    def vocab_size(self) -> int:
        """Width of the logits that this guide masks."""
        return self._vocabulary.vocab_size

    @property
    def accepting(self) -> bool:
        """Whether the text so far is complete, so that an end token is allowed."""
        return self._ended or self._matcher.accepting

    @property
    def ended(self) -> bool:
        """Whether an end token was accepted."""
        return self._ended

    @property
    def finished(self) -> bool:
        """Whether only an end token may follow."""
        if not self.accepting:
            return False
        allowed = self.allowed()
        return set(allowed) <= set(self._vocabulary.eos_token_ids)

    def allowed(self) -> list[int]:
        """Return the ids of the tokens that may follow. Raises as `fill` does."""
        mask = allocate_bitmask(1, self._vocabulary.vocab_size)[0]
        self.fill(mask)
        bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")
        return [int(i) for i in np.flatnonzero(bits)]

    def forced(self, limit: int = 32) -> list[int]:
        """Return the tokens that must follow, up to `limit`: each the only one allowed.

        The state is unchanged. End tokens are not among them.
        """
        tokens: list[int] = []
        while len(tokens) < limit:
            allowed = self.allowed()
            if len(allowed) != 1 or allowed[0] in self._vocabulary.eos_token_ids:
                break
            self.accept(allowed[0])
            tokens += allowed
        self.rollback(len(tokens))
        return tokens

    def describe(self) -> dict[str, Any]:
        """Return where the guide stands."""
        facts = {"backend": self.backend, "tokens": self.num_tokens, "accepting": self.accepting}
        return facts | {"ended": self._ended}
