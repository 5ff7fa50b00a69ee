"""PEFT's `trainable_token_indices`: which rows of which modules are trained, out of a config.

A list means the embedding's; a table says the rows of each module, by the end of its path.
"""

from __future__ import annotations

from typing import Any

Indices = dict[str, tuple[int, ...]]


def parse_indices(value: Any) -> Indices:
    """Return the rows by module; raise `ValueError` for what says none."""
    if value is None:
        return {}
    if isinstance(value, list):
        value = {"embed_tokens": value} if value else {}
    if not isinstance(value, dict):
        raise ValueError("must be a list of token ids, or a table of such lists")
    found: Indices = {}
    for name, ids in value.items():
        plain = isinstance(ids, list) and all(isinstance(i, int) and i >= 0 for i in ids)
        if not plain or any(isinstance(i, bool) for i in ids) or len(set(ids)) < len(ids):
            raise ValueError("must be lists of token ids, each once")
        if ids:
            found[str(name)] = tuple(ids)
    return found
