"""Recording what an engine states about itself, to look at later or elsewhere, at any step."""

from workbench.trace.apply import apply
from workbench.trace.layout import CacheLayout, GroupLayout
from workbench.trace.live import live_state
from workbench.trace.replay import BlockChange, BlockDiff, ReplayedStep, Timeline, replay
from workbench.trace.state import BlockState, BlockTableState, ReplayedState, SequenceState
from workbench.trace.trace import Trace

__all__ = [
    "BlockChange",
    "BlockDiff",
    "BlockState",
    "BlockTableState",
    "CacheLayout",
    "GroupLayout",
    "ReplayedState",
    "ReplayedStep",
    "SequenceState",
    "Timeline",
    "Trace",
    "apply",
    "live_state",
    "replay",
]
