"""What a sequence may not say next: bad words, repeated n-grams, an end before `min_tokens`.

Decided on the host from a sequence's tokens, and turned to -inf in one write for the whole batch.
Called by `Processing` once a step. Semantics as in transformers' `NoBadWordsLogitsProcessor`,
`NoRepeatNGramLogitsProcessor` and `MinNewTokensLengthLogitsProcessor`, but that a bad word counts
from a sequence's first token on, and may be an end token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.request import Sequence
from workbench.sample.following import Following
from workbench.sample.params import to_device


class NGrams(Following):
    """Which tokens have followed each (size - 1)-gram of a token list."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._followers: dict[tuple[int, ...], dict[int, None]] = {}

    def banned(self, token_ids: list[int]) -> dict[int, None]:
        """Return the tokens that would complete an n-gram for the second time (as keys)."""
        self.follow(token_ids)
        start = len(token_ids) + 1 - self.size
        return self._followers.get(tuple(token_ids[start:]), {}) if start >= 0 else {}

    def restart(self) -> None:
        """Forget every n-gram."""
        self._followers = {}

    def extend(self, token_ids: list[int], start: int) -> None:
        """Note the n-grams that end at `start` or later."""
        before = self.size - 1
        for end in range(max(start, before), len(token_ids)):
            prefix = tuple(token_ids[end - before : end])
            self._followers.setdefault(prefix, {})[token_ids[end]] = None


class Rules:
    """What is forbidden to one sequence."""

    def __init__(self, sequence: Sequence) -> None:
        params = sequence.request.params
        self.sequence = sequence
        self.always = [word[0] for word in sequence.bad_word_ids if len(word) == 1]
        self._phrases: dict[int, list[list[int]]] = {}  # by the token before their last one
        for word in sequence.bad_word_ids:
            if len(word) > 1:
                self._phrases.setdefault(word[-2], []).append(list(word))
        self._min_tokens, self._ends = params.min_tokens, sorted(sequence.stop_ids)
        size = params.no_repeat_ngram_size
        self._ngrams = None if size is None else NGrams(size)

    @staticmethod
    def apply_to(sequence: Sequence) -> bool:
        """Whether a sequence has any."""
        params = sequence.request.params
        ends = params.min_tokens > 0 and bool(sequence.stop_ids)
        return ends or params.no_repeat_ngram_size is not None or bool(sequence.bad_word_ids)

    def now(self) -> list[int]:
        """Return the tokens forbidden next, `always` aside; some may be named twice."""
        token_ids = self.sequence.token_ids
        found: list[int] = []
        for word in self._phrases.get(token_ids[-1], ()):
            if token_ids[1 - len(word) :] == word[:-1]:
                found.append(word[-1])
        if self._ngrams is not None:
            found += self._ngrams.banned(token_ids)
        if len(token_ids) - self.sequence.num_prompt_tokens < self._min_tokens:
            found += self._ends
        return found


class Forbidden:
    """The rules of a batch's rows that have any. `arrange` it, then `apply` it every step."""

    def __init__(self) -> None:
        self._rules: dict[Sequence, Rules] = {}
        self._rows: list[tuple[int, Rules]] = []
        self._always: Tensor | None = None

    def arrange(self, sequences: list[Sequence], vocab_size: int, device: torch.device) -> bool:
        """Take in a batch's sequences, in row order; return whether any has rules."""
        rows = [i for i, sequence in enumerate(sequences) if Rules.apply_to(sequence)]
        known = self._rules
        self._rules = {s: known.get(s) or Rules(s) for s in (sequences[row] for row in rows)}
        self._rows = [(row * vocab_size, self._rules[sequences[row]]) for row in rows]
        always = [offset + i for offset, rules in self._rows for i in rules.always]
        self._always = to_device(torch.tensor(always), device) if always else None
        return bool(rows)

    def apply(self, logits: Tensor, failed: dict[int, str]) -> None:
        """Set what is forbidden to -inf, in place. logits: [R, V], contiguous. It cannot fail."""
        flat = logits.view(-1)
        if self._always is not None:
            flat.index_fill_(0, self._always, -torch.inf)
        now = [offset + i for offset, rules in self._rows for i in rules.now()]
        if now:
            flat.index_fill_(0, to_device(torch.tensor(now), logits.device), -torch.inf)
