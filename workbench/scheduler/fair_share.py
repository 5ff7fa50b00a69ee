"""`FairShare`: the tenant that was served least goes first.

Served means tokens computed, prompt and output, over the tenant's weight. Counted when steps are
committed; a tenant that comes back after a pause starts level with the least served of those that
were there, so that nobody saves up (the counter lift of Sheng et al. 2024, "Fairness in serving
large language models").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.batch import StepPlan
from workbench.errors import ConfigError
from workbench.request import Sequence
from workbench.scheduler.view import SchedulerView


class FairShare:
    """Shares by `Request.tenant`; within a tenant first come, first served. Nobody starves.

    weights: tenant -> share relative to others; 1 where none is given.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        """Raise `ConfigError` unless every weight is above 0."""
        self.weights = dict(weights or {})
        for tenant, weight in self.weights.items():
            if not weight > 0:
                raise ConfigError(f"weights[{tenant!r}]", weight, "must be above 0", "Raise it.")

    def bind(self, scheduler: SchedulerView) -> BoundFairShare:
        """Return the key function for one scheduler, with an account of its own."""
        return BoundFairShare(scheduler, self.weights)


class BoundFairShare:
    """The key function and the account: `served`, tokens over weight by tenant."""

    def __init__(self, scheduler: SchedulerView, weights: Mapping[str, float]) -> None:
        self._scheduler, self._weights = scheduler, weights
        self.served: dict[str, float] = {}
        self._active: set[str] = set()
        self._tags: dict[int, float] = {}

    def refresh(self) -> None:
        """Lift tenants that came back, and put each one's waiting sequences in a row.

        A waiting sequence counts with what its tenant will have been served when its turn comes, so
        that tenants alternate also when many start in one step.
        """
        waiting = self._scheduler.waiting
        tenants = {s.request.tenant for s in waiting}
        tenants.update(s.request.tenant for s in self._scheduler.running)
        stayed = [self._level(tenant) for tenant in tenants & self._active]
        floor = min(stayed, default=0.0)
        for tenant in tenants - self._active:
            self.served[tenant] = max(self._level(tenant), floor)
        self._active = tenants
        # Whoever is away and would be lifted on return needs no account.
        self.served = {t: v for t, v in self.served.items() if t in tenants or v > floor > 0}
        ahead: dict[str, float] = {}
        self._tags.clear()
        for sequence in sorted(waiting, key=lambda s: s.sequence_id):
            tenant = sequence.request.tenant
            before = ahead.get(tenant, self._level(tenant))
            self._tags[sequence.sequence_id] = before
            ahead[tenant] = before + sequence.num_tokens / self._weight(tenant)

    def committed(self, plan: StepPlan) -> None:
        """Charge a step's tokens."""
        for sequence, num_new in zip(plan.sequences, plan.num_new, strict=True):
            tenant = sequence.request.tenant
            self.served[tenant] = self._level(tenant) + num_new / self._weight(tenant)

    def __call__(self, sequence: Sequence) -> Any:
        """Return what its tenant has been served before its turn."""
        number = sequence.sequence_id
        return self._tags.get(number, self._level(sequence.request.tenant)), number

    def _level(self, tenant: str) -> float:
        return self.served.get(tenant, 0.0)

    def _weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)
