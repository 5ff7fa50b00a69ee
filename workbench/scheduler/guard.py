"""`GuardedPolicy`: applies a policy that may be user code.

Held by the scheduler, which sorts its waiting queue with it and asks it whom to preempt. It cannot
lose or duplicate a sequence, whatever the policy does.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Any

from workbench.batch import StepPlan
from workbench.events import warn
from workbench.request import Sequence, Status
from workbench.scheduler.policy import KeyFunction, Policy, fcfs, policy_name
from workbench.scheduler.view import SchedulerView


class GuardedPolicy:
    """A policy bound to its scheduler; one that raises is told of and replaced by `fcfs`.

    on_failure: called with the policy's name and the traceback.
    """

    def __init__(
        self, policy: Policy, scheduler: SchedulerView, on_failure: Callable[[str, str], None]
    ) -> None:
        self._scheduler, self._on_failure = scheduler, on_failure
        self.policy = policy

    @property
    def policy(self) -> Policy:
        """The policy, as it was given."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        """Bind another one; what its `bind` raises is the caller's."""
        bind = getattr(policy, "bind", None)
        key: KeyFunction = policy if bind is None else bind(self._scheduler)  # type: ignore[assignment]
        self._policy, self._key_of = policy, key
        self._refresh: Callable[[], Any] | None = getattr(key, "refresh", None)
        self._committed: Callable[[StepPlan], Any] | None = getattr(key, "committed", None)

    def sort(self, waiting: list[Sequence]) -> None:
        """Sort in place, first to be served first.

        A policy may add and abort requests meanwhile; whatever else it does to the queue is undone.
        """
        if self._refresh is not None:
            self._try(self._refresh)
        if len(waiting) < 2:
            return
        before = list(waiting)
        try:
            ordered = sorted(before, key=self._key)
        except Exception as error:  # noqa: BLE001 - user code
            self._replace(error)
            ordered = sorted(before, key=self._key)
        if waiting != before:
            known = {sequence.sequence_id for sequence in before}
            added = [sequence for sequence in waiting if sequence.sequence_id not in known]
            ordered = [s for s in ordered if s.status is Status.WAITING] + added
        waiting[:] = ordered

    def last(self, sequences: Iterable[Sequence]) -> Sequence:
        """Return the sequence that goes last."""
        candidates = list(sequences)
        try:
            return max(candidates, key=self._key)
        except Exception as error:  # noqa: BLE001 - user code
            self._replace(error)
            return max(candidates, key=self._key)

    def committed(self, plan: StepPlan) -> None:
        """Tell a policy that keeps accounts what was computed."""
        if self._committed is not None:
            self._try(lambda: self._committed(plan) if self._committed else None)

    def _key(self, sequence: Sequence) -> tuple[Any, int]:
        """Rank a request's branches together: beams that wait for each other must not be torn."""
        key = self._key_of(sequence.leader or sequence)
        if key is None:  # of equal keys, arrival decides: a forgotten `return` would go unseen
            raise TypeError("a policy returned None, not a key to sort by")
        return key, sequence.sequence_id

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - user code
            self._replace(error)

    def _replace(self, error: Exception) -> None:
        name = policy_name(self.policy)
        trace = "".join(traceback.format_exception(error))
        self.policy = fcfs
        warn(f"policy {name!r} raised; using fcfs from now on:\n{trace}", stacklevel=5)
        self._on_failure(name, trace)
