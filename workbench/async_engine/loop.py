"""`EngineLoop`: the one thread that touches an engine: jobs between two steps, steps while work is
left, asleep otherwise.

Everybody else puts jobs on its inbox. The inbox never blocks who puts and may be used from a
finalizer, so whatever is dropped anywhere can be called off.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

import torch

from workbench.async_engine.desk import Desk
from workbench.async_engine.reply import Reply
from workbench.async_engine.ticket import Ticket
from workbench.async_engine.waiters import wake
from workbench.engine import Engine, StepRecord
from workbench.errors import EngineClosed

T = TypeVar("T")


class Job(NamedTuple):
    """Something to do between two steps; `refuse` is called instead where that is over."""

    run: Callable[[], object]
    refuse: Callable[[BaseException], object]


class EngineLoop:
    """Owns the engine and its thread. All attributes but `closed` are the thread's."""

    def __init__(self, engine: Engine, max_pending: int | None) -> None:
        self.engine = engine
        self.desk = Desk(engine, max_pending)
        self.inbox: SimpleQueue[Job] = SimpleQueue()
        self.paused = self.stopping = self.closed = False
        self.ended: Reply[None] = Reply()
        self._drained: list[Reply[None]] = []
        self._failure: BaseException | None = None  # what ended the thread, unless it was stopped
        # A daemon, so that one who forgets to close can still leave; `close` is called then.
        self.thread = threading.Thread(target=self.run, name="workbench-engine", daemon=True)
        atexit.register(self.close)
        self.thread.start()

    # --- any thread ---------------------------------------------------------------------------

    def ask(self, action: Callable[[], T]) -> Reply[T]:
        """Have `action` run between two steps; return the reply with its result."""
        reply: Reply[T] = Reply()
        self._post(Job(lambda: reply.run(action), reply.refuse))
        return reply

    def submit(self, ticket: Ticket) -> None:
        """Have a request admitted; its errors come where its result would."""

        def refuse(error: BaseException) -> None:
            waiter = ticket.fail(error)
            wake([waiter] if waiter else [])

        self._post(Job(lambda: self.desk.submit(ticket), refuse))

    def leave(self, ticket: Ticket) -> None:
        """Have a request dropped. Safe in a finalizer."""
        if not self.closed:
            self.inbox.put(Job(lambda: self.desk.leave(ticket), lambda _: None))

    def drain(self) -> Reply[None]:
        """Take nothing new; the reply comes when everything is done."""
        reply: Reply[None] = Reply()

        def begin() -> None:
            self.desk.draining, self.paused = True, False
            self._drained.append(reply)

        self._post(Job(begin, reply.refuse))
        return reply

    def stop(self) -> None:
        """Have everything aborted, the engine closed and the thread ended. Safe in a finalizer."""
        if not self.closed:
            self.inbox.put(Job(self._stop, lambda _: None))

    def close(self) -> None:
        """Stop, and wait for it, unless this is the engine's own thread."""
        self.stop()
        if threading.current_thread() is not self.thread:
            self.thread.join()

    def _post(self, job: Job) -> None:
        # Put first, then look: a job that the ending thread did not see is refused here.
        self.inbox.put(job)
        if self.closed:
            self._refuse_jobs()

    def _refuse_jobs(self) -> None:
        while True:
            try:
                job = self.inbox.get_nowait()
            except Empty:
                return
            job.refuse(self._closed_error())

    def _closed_error(self) -> EngineClosed:
        error = EngineClosed("the engine was closed; build a new one")
        error.__cause__ = self._failure
        return error

    def describe(self) -> dict[str, Any]:
        """Return the state and the numbers of requests, as of a moment ago."""
        if self.closed:
            return {"state": "closed"}
        paused = "paused" if self.paused else "running"
        return {
            "state": "draining" if self.desk.draining else paused,
            "pending": len(self.desk.tickets),
            "in line": len(self.desk.line),
            "max_pending": self.desk.max_pending,
        }

    # --- the engine's thread ------------------------------------------------------------------

    def run(self) -> None:
        """Serve until stopped; whatever ends it, nobody is left waiting and no memory kept."""
        try:
            if self.engine.runner.device.type == "cuda":
                torch.cuda.set_device(self.engine.runner.device)  # a setting of each thread
            while not self.stopping:
                self._serve()
                if self._may_step:
                    self._step(self.engine.advance)
                self.desk.settle()
                self._tell_drained()
        except BaseException as failure:
            self._failure = failure
            raise
        finally:
            self._end()

    @property
    def _may_step(self) -> bool:
        return not (self.paused or self.stopping) and self.engine.has_work

    def _serve(self) -> None:
        """Do what has been asked for; sleep until something is if there is no step to run."""
        num_jobs = self.inbox.qsize() if self._may_step else max(1, self.inbox.qsize())
        for _ in range(num_jobs):
            self.inbox.get().run()
        if num_jobs and not self.engine.closed:
            self.desk.sweep()
        self.stopping |= self.engine.closed

    def _step(self, step: Callable[[], StepRecord]) -> None:
        try:
            record = step()
        except Exception as error:  # noqa: BLE001 - a failing request must not end the others
            self.desk.step_failed(error)
        else:
            self.desk.deliver(record)

    def _stop(self) -> None:
        self.stopping = True

    def pause(self) -> None:
        """Run no further steps."""
        self.paused = True

    def step(self, count: int) -> int:
        """Run up to `count` steps now, paused or not; return how many there were to run."""
        ran = 0
        while ran < count and not self.stopping and self.engine.has_work:
            self._step(self.engine.step)
            self.desk.settle()
            ran += 1
        return ran

    def resume(self) -> None:
        """Run steps, and take requests, again."""
        self.paused = self.desk.draining = False

    def _tell_drained(self) -> None:
        if self._drained and self.desk.idle:
            for reply in self._drained:
                reply.answer(None)
            self._drained.clear()

    def _end(self) -> None:
        try:
            self.engine.close()
        finally:
            self.closed = True
            self.desk.fail_all(self._closed_error)
            for reply in self._drained:
                reply.refuse(self._closed_error())
            self._refuse_jobs()
            atexit.unregister(self.close)
            self.ended.answer(None)
