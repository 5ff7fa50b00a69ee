"""`GrammarCache`: compiled grammars by their content, the least recently used dropped first.

Owned by `GrammarCompiler`, under its lock. Bounded in bytes; it holds no grammar that is still
being compiled.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from workbench.describe import Described, human_bytes
from workbench.guided.compiled import CompiledGrammar


class GrammarCache(Described):
    """Grammars of `max_bytes` in all. One that is larger than that is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.num_hits = self.num_misses = 0
        self._grammars: OrderedDict[str, CompiledGrammar] = OrderedDict()

    def get(self, key: str) -> CompiledGrammar | None:
        """Return a grammar, now the most recently used, or None."""
        grammar = self._grammars.get(key)
        if grammar is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._grammars.move_to_end(key)
        return grammar

    def put(self, key: str, grammar: CompiledGrammar) -> None:
        """Keep a grammar, and drop what no longer fits."""
        known = self._grammars.pop(key, None)
        self.num_bytes -= known.num_bytes if known else 0
        if grammar.num_bytes > self.max_bytes:
            return
        self._grammars[key] = grammar
        self.num_bytes += grammar.num_bytes
        while self.num_bytes > self.max_bytes:
            _, dropped = self._grammars.popitem(last=False)
            self.num_bytes -= dropped.num_bytes

    def clear(self) -> None:
        """Drop everything."""
        self._grammars.clear()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._grammars)

    def __contains__(self, key: str) -> bool:
        return key in self._grammars

    def describe(self) -> dict[str, Any]:
        """Return what is kept, and how often it was asked for."""
        size = f"{human_bytes(self.num_bytes)} of {human_bytes(self.max_bytes)}"
        hits = f"{self.num_hits} of {self.num_hits + self.num_misses}"
        return {"grammars": len(self), "size": size, "hits": hits}
