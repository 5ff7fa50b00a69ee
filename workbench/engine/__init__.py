"""The engine: its parts in a loop, one visible step at a time."""

from workbench.engine.admission import make_sequence
from workbench.engine.engine import Engine
from workbench.engine.record import StepRecord

__all__ = ["Engine", "StepRecord", "make_sequence"]
