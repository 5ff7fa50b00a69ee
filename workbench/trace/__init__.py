"""Recording what an engine states about itself, to look at later or elsewhere, at any step."""

from workbench.trace.apply import apply
from workbench.trace.compare import compare
from workbench.trace.comparison import Comparison
from workbench.trace.layout import CacheLayout, GroupLayout
from workbench.trace.live import live_state
from workbench.trace.replay import BlockChange, BlockDiff, ReplayedStep, Timeline, replay
from workbench.trace.run_workload import Timing, WorkloadRun, run_workload
from workbench.trace.state import BlockState, BlockTableState, ReplayedState, SequenceState
from workbench.trace.tokens import SequenceLog, TokenFact, sequence_logs
from workbench.trace.trace import Trace

__all__ = [
    "BlockChange",
    "BlockDiff",
    "BlockState",
    "BlockTableState",
    "CacheLayout",
    "Comparison",
    "GroupLayout",
    "ReplayedState",
    "ReplayedStep",
    "SequenceLog",
    "SequenceState",
    "Timeline",
    "Timing",
    "TokenFact",
    "Trace",
    "WorkloadRun",
    "apply",
    "compare",
    "live_state",
    "replay",
    "run_workload",
    "sequence_logs",
]
