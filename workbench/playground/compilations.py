"""What a session has compiled: resources of all, the texts of the newest few.

A configuration's texts are hundreds of kilobytes, and a sweep compiles hundreds of configurations.
"""

from __future__ import annotations

from typing import Any

from workbench.playground.compiling import Compiled
from workbench.playground.subject import Subject

Key = tuple[Subject, str, str]
"""Subject, `config_key` and target."""

_KEPT_TEXTS = 24
_GONE = "compiled before; its text is not kept: select it again"


class Compilations:
    """By key, a `Compiled` or the reason why there is none; `taken`: the resources of those."""

    def __init__(self) -> None:
        self.taken: dict[Key, list[dict[str, Any]]] = {}
        self._found: dict[Key, Compiled | str] = {}

    def __contains__(self, key: Key) -> bool:
        """Whether it was compiled, or failed to."""
        return key in self._found

    def get(self, key: Key) -> Compiled | str | None:
        """Return what it came to; None: it was not compiled."""
        return self._found.get(key)

    def retry(self, key: Key) -> None:
        """Forget a failure, or texts that were not kept, so that it is compiled again."""
        if isinstance(self._found.get(key), str):
            del self._found[key]

    def add(self, key: Key, found: Compiled | str, *, keep: Key | None = None) -> None:
        """Note what it came to; older texts go, that of `keep` aside."""
        self._found[key] = found
        if isinstance(found, Compiled):
            self.taken[key] = found.resources
        texts = [k for k, each in self._found.items() if isinstance(each, Compiled) and k != keep]
        for old in texts[:-_KEPT_TEXTS]:
            self._found[old] = _GONE
