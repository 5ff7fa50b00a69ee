"""`CompiledGrammar`: a constraint ready for use, from which every sequence gets its own `Guide`.

Made by `GrammarCompiler`, kept in its cache, shared by all requests of equal content; it never
changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workbench.describe import Described, human_bytes
from workbench.guided.guide import Guide, Matcher
from workbench.guided.vocabulary import Vocabulary
from workbench.guided_params import GuideKind


class CompiledGrammar(Described):
    """backend: the library that holds to it. num_bytes: memory it takes, as the library says or as
    building it was seen to take. start: makes a matcher that no other guide shares state with."""

    def __init__(
        self,
        kind: GuideKind,
        backend: str,
        start: Callable[[], Matcher],
        vocabulary: Vocabulary,
        num_bytes: int,
    ) -> None:
        self.kind, self.backend, self.num_bytes = kind, backend, num_bytes
        self._start, self._vocabulary = start, vocabulary

    def start(self) -> Guide:
        """Return a guide for a sequence that has generated nothing yet."""
        return Guide(self._start(), self._vocabulary, self.backend)

    def describe(self) -> dict[str, Any]:
        """Return what it is."""
        return {"kind": self.kind, "backend": self.backend, "size": human_bytes(self.num_bytes)}
