"""The scheduler's books: open to one change at a time, and never left half written.

`Scheduler` opens them to plan, commit, fork or finish. While they are open an interrupt is held
back, and user code that runs in between (a policy, an event's subscriber) cannot start another
change: it is told to wait until the step is over. So is a logits processor: the engine opens them
to sample, too.
"""

from __future__ import annotations

from types import TracebackType

from workbench.errors import WorkbenchError
from workbench.interrupts import shielded


class StepInProgress(WorkbenchError, RuntimeError):
    """Something that belongs between two steps was asked for in the middle of one."""

    def __init__(self, action: str, busy: str) -> None:
        super().__init__(
            f"{action}: refused during {busy}. Do it between two steps, for example from a "
            "subscriber of `StepDone`, which is stated when a step is over."
        )


class StalePlan(WorkbenchError, RuntimeError):
    """A plan was committed that is not the latest one, or a second time."""

    def __init__(self, step: int, latest: int) -> None:
        super().__init__(
            f"plan of step {step}: committed before, or replaced by step {latest}. "
            "Commit each plan once, before the next `schedule()`."
        )


class Books:
    """Says who is changing the queues and block tables now: `busy`, None if nobody."""

    __slots__ = ("busy",)

    def __init__(self) -> None:
        self.busy: str | None = None

    def require_closed(self, action: str) -> None:
        """Raise `StepInProgress` if a change is under way."""
        if self.busy is not None:
            raise StepInProgress(action, self.busy)

    def open(self, action: str) -> Change:
        """Return a context manager for one change; entering it may raise `StepInProgress`."""
        return Change(self, action)


class Change(shielded):
    """One change of the books: shielded from interrupts, and the only one at its time."""

    __slots__ = ("_action", "_books")

    def __init__(self, books: Books, action: str) -> None:
        self._books, self._action = books, action

    def __enter__(self) -> Change:
        """Open the books."""
        self._books.require_closed(self._action)
        super().__enter__()
        self._books.busy = self._action
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the books, then let an interrupt through that was held back."""
        self._books.busy = None
        super().__exit__(kind, value, trace)
