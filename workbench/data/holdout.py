"""The one rule that says which modules no model of this project is trained on.

Called by the corpus builder and by the prompt suite. The rule reads names alone, so a module is
held out on every machine and in every Python version alike; it never looks at a file's text.
"""

from __future__ import annotations

import hashlib

STDLIB = "stdlib"
"""The name under which the standard library counts as one distribution."""

_BUCKETS = 10_000
_PACKAGE_SHARE = 150  # of 10,000 modules
_STDLIB_SHARE = 400
_VENDOR_FOLDERS = ("_vendor", "vendor", "_vendored", "third_party", "extern", "externals")


def is_held_out(distribution: str, module: str) -> bool:
    """Whether the module (dotted name) of this distribution belongs to the held-out set.

    A vendored copy follows the package it was copied from: `pip._vendor.rich.text` is judged as
    `rich.text` of `rich`, so that one copy cannot be trained on while the other is held out.
    """
    parts = module.split(".")
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] in _VENDOR_FOLDERS:
            parts = parts[place + 1 :]
            distribution = parts[0]
            break
    bucket = stable_hash(f"{_canonical(distribution)}:{'.'.join(parts)}") % _BUCKETS
    return bucket < (_STDLIB_SHARE if distribution == STDLIB else _PACKAGE_SHARE)


def stable_hash(text: str) -> int:
    """A 64-bit hash of `text` that is the same in every process and on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _canonical(distribution: str) -> str:
    """Distribution names compare without case, and `-`, `_` and `.` are one."""
    return distribution.lower().replace("_", "-").replace(".", "-")
