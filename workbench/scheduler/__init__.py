"""In-flight batching: which sequences run in the next step, and by how many tokens."""

from workbench.scheduler.ending import append_token, ends, mark_finished
from workbench.scheduler.policy import POLICIES, Policy, fcfs, get_policy, priority, shortest_first
from workbench.scheduler.scheduler import Scheduler

__all__ = [
    "POLICIES",
    "Policy",
    "Scheduler",
    "append_token",
    "ends",
    "fcfs",
    "get_policy",
    "mark_finished",
    "priority",
    "shortest_first",
]
