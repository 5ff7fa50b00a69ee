"""`Speller`: the tokens that a text is written with, always exactly that text.

llguidance asks for them where only one text can follow, to have it in the tokenizer's own tokens
rather than in any others that spell the same. Called while masks are made; never shown to a user.
"""

from __future__ import annotations

from workbench.guided.vocabulary import Vocabulary
from workbench.models.tokenizer import Tokenizer


class Speller:
    """Writes texts in the tokens of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
        self._vocabulary, self._hf = vocabulary, tokenizer.hf
        self._ids = {token: i for i, token in reversed([*enumerate(vocabulary.tokens)]) if token}
        self._longest = max(map(len, self._ids), default=0)

    def encode(self, text: str) -> list[int]:
        """Return the tokenizer's tokens if they spell the text, else the longest that fit.

        A tokenizer may put a blank before a text or normalise it. Where the vocabulary has no
        token for a piece the list ends early.
        """
        wanted, tokens = text.encode(), self._vocabulary.tokens
        ids = self._hf.encode(text, add_special_tokens=False, verbose=False)
        if all(i < len(tokens) for i in ids) and b"".join(tokens[i] for i in ids) == wanted:
            return list(ids)
        return self._longest_first(wanted)

    def _longest_first(self, wanted: bytes) -> list[int]:
        ids: list[int] = []
        start = 0
        while start < len(wanted):
            ends = range(min(len(wanted), start + self._longest), start, -1)
            end = next((e for e in ends if wanted[start:e] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[wanted[start:end]])
            start = end
        return ids
