"""`Desk`: the requests that somebody waits for. It admits them, and passes on what they make.

Used by `EngineLoop`, on the engine's thread and between two steps only: there is nothing to lock.
Requests that were added to the engine by other ways run along; the desk leaves them alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from workbench.async_engine.mailbox import Mailbox
from workbench.async_engine.ticket import Answer, Ticket
from workbench.async_engine.waiters import Waiter, wake
from workbench.engine import Engine, StepRecord
from workbench.errors import EngineDraining, QueueFull, RequestFailed
from workbench.errors import UnknownRequest as Unknown
from workbench.events import warn


class Desk:
    """At most `max_pending` requests (None: any number) are with the engine; others are in line."""

    def __init__(self, engine: Engine, max_pending: int | None) -> None:
        self.engine, self.max_pending = engine, max_pending
        self.tickets: dict[str, Ticket] = {}  # by request id
        self.line: deque[Ticket] = deque()
        self.draining = False
        self._woken: list[Waiter] = []

    # --- coming and going ---------------------------------------------------------------------

    def submit(self, ticket: Ticket) -> None:
        """Admit a request, put it in line, or refuse it."""
        if ticket.ended:
            return  # it left before it was looked at
        if self.draining:
            self._tell(ticket.fail(EngineDraining()))
        elif self.max_pending is None or len(self.tickets) < self.max_pending:
            self._admit(ticket)
        elif ticket.wait:
            self.line.append(ticket)
        else:
            self._tell(ticket.fail(QueueFull(self.max_pending)))

    def leave(self, ticket: Ticket) -> None:
        """Drop a request whose answer nobody wants any more, in whatever state it is."""
        if ticket.ended:
            return
        ticket.ended = True
        if ticket in self.line:
            self.line.remove(ticket)
        elif ticket.record is not None:
            name = ticket.record.request.request_id
            del self.tickets[name]
            self.engine.discard([name])
        if isinstance(ticket.sink, Answer):
            ticket.sink.reply.drop()

    def hurry(self, request_id: str) -> None:
        """Admit the request of this id now if it is in line, whatever the limit says."""
        for ticket in [t for t in self.line if t.request_id == request_id]:
            self.line.remove(ticket)
            self._admit(ticket)

    def _admit(self, ticket: Ticket) -> None:
        try:
            name = self.engine.add(ticket.prompt, ticket.params, **ticket.options)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever submitted
            self._tell(ticket.fail(error))
            return
        ticket.record = self.engine.find(name)
        self.tickets[name] = ticket
        if isinstance(ticket.sink, Mailbox):
            ticket.sink.open(ticket.record, self.engine.tokenizer)

    # --- what a step brings -------------------------------------------------------------------

    def deliver(self, step: StepRecord) -> None:
        """Pass on what a step made."""
        reasons = {(s.request.request_id, s.index): s.finish_reason for s in step.finished}
        news = dict.fromkeys((token.request_id, token.branch) for token in step.tokens)
        for name, branch in news | reasons:
            ticket = self.tickets.get(name)
            if ticket is None or ticket.record is None:
                continue
            if ticket.sink.abandoned:
                self.leave(ticket)
            elif ticket.live:
                sequence = ticket.record.sequences[branch]
                self._tell(ticket.pass_on(sequence, reasons.get((name, branch))))
        if self.engine.bus:  # observers are called during the step and may have ended others
            self.sweep()
        else:
            self._finish({name for name, _ in reasons})

    def sweep(self) -> None:
        """Answer for every request that has ended, by whatever way.

        After `engine.restore` a request goes on under its name. What it makes anew is what it made
        before, so its stream waits until it is again where it was.
        """
        known = self.engine.requests
        for name, ticket in self.tickets.items():
            ticket.record = known.get(name, ticket.record)
        self._finish(set(self.tickets))

    def _finish(self, names: set[str]) -> None:
        for name in names:
            ticket = self.tickets.get(name)
            if ticket is None or ticket.record is None or not ticket.record.finished:
                continue
            del self.tickets[name]
            try:
                output = self.engine.forget(name)
            except Unknown as error:  # somebody else has forgotten it
                self._tell(ticket.fail(error))
            else:
                self._tell(ticket.finish(output))

    def step_failed(self, error: Exception) -> None:
        """End the requests that a failed step was about, and say so to whoever waits for them.

        All that were running: what belongs to one request alone fails no step. Nothing is tried
        twice: what has failed once as it stood would fail again. Who only waits for a place is not
        concerned, unless nobody was running, so that the loop cannot fail for ever.
        """
        engine = self.engine
        running = engine.scheduler.running or engine.scheduler.waiting
        for name in {sequence.request.request_id for sequence in running}:
            ticket = self.tickets.pop(name, None)
            if ticket is not None:
                engine.discard([name])
                self._tell(ticket.fail(RequestFailed(name, error)))
            else:
                engine.abort(name)
                warn(f"request {name!r} was aborted: its step failed with {error!r}", stacklevel=3)
        self.sweep()

    # --- the end ------------------------------------------------------------------------------

    def settle(self) -> None:
        """Admit from the line while there are places, and wake whoever has got something."""
        while self.line and (self.max_pending is None or len(self.tickets) < self.max_pending):
            self._admit(self.line.popleft())
        woken, self._woken = self._woken, []
        wake(woken)

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """Answer every request with an error of its own."""
        for ticket in [*self.tickets.values(), *self.line]:
            self._tell(ticket.fail(make_error()))
        self.tickets.clear()
        self.line.clear()
        self.settle()

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything and the engine has nothing to do."""
        return not (self.tickets or self.line or self.engine.has_work)

    def _tell(self, waiter: Waiter | None) -> None:
        if waiter is not None:
            self._woken.append(waiter)
