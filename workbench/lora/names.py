"""How a request says which adapters it goes through: `"sql"`, `"sql:0.5"`, `"sql:0.7+json:0.3"`.

Names are short and plain, so that one can stand in a URL, a file name or a metric. Used by the
manager; says nothing about which adapters there are.
"""

from __future__ import annotations

import math
import re

from workbench.errors import ConfigError, RequestError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def check_name(name: object) -> str:
    """Return a name; raise `ConfigError` unless it is 1 to 64 letters, digits, `_`, `.` or `-`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        fix = "Use 1 to 64 letters, digits, '_', '.' or '-', not beginning with '.' or '-'."
        raise ConfigError("adapter", name, "is no name for an adapter", fix)
    return name


def parse_uses(text: object) -> dict[str, float]:
    """Return the factor of each adapter in a request's `lora`; one that is named twice adds up.

    Raises `RequestError` for what is no such text, or a factor that is no number.
    """
    fix = 'Write it as "sql", "sql:0.5" or "sql:0.7+json:0.3".'
    if not isinstance(text, str) or not text:
        raise RequestError("lora", text, "is no name of an adapter", fix)
    found: dict[str, float] = {}
    for part in text.split("+"):
        name, colon, factor = part.partition(":")
        name = name.strip()
        try:
            scale = float(factor) if colon else 1.0
        except ValueError:
            scale = math.nan
        if not _NAME.fullmatch(name) or not math.isfinite(scale):
            raise RequestError("lora", text, f"{part!r} is no adapter with a factor", fix)
        found[name] = found.get(name, 0.0) + scale
    return found
