"""In-flight batching: which sequences run in the next step, and by how many tokens."""

from workbench.scheduler.dropping import check_droppable
from workbench.scheduler.ending import append_token, ends, mark_finished
from workbench.scheduler.facts import added
from workbench.scheduler.fair_share import FairShare
from workbench.scheduler.foresight import Foreseen
from workbench.scheduler.lending import lend
from workbench.scheduler.policy import (
    POLICIES,
    AgedPriority,
    Policy,
    deadline_first,
    fcfs,
    get_policy,
    priority,
    shortest_first,
)
from workbench.scheduler.prefix_match import LongestPrefixMatch
from workbench.scheduler.scheduler import Scheduler

__all__ = [
    "POLICIES",
    "AgedPriority",
    "FairShare",
    "Foreseen",
    "LongestPrefixMatch",
    "Policy",
    "Scheduler",
    "added",
    "append_token",
    "check_droppable",
    "deadline_first",
    "ends",
    "fcfs",
    "get_policy",
    "lend",
    "mark_finished",
    "priority",
    "shortest_first",
]
