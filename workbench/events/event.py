"""`Event`: what every fact that an engine states about itself is a kind of.

Records of plain values (numbers, text, tuples), so that a trace can be written to a file
and read back as it was.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Event:
    """A fact; `step` is the engine step it belongs to (0 before the first)."""

    step: int
