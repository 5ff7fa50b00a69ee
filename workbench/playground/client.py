"""`Worker`: a worker process held by a handle that can ask it, kill it and start it anew.

The process is started with the first question. A job that takes too long, and one that is
cancelled from another thread, costs the process; the next question starts another one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection, Pipe
from typing import Any, Self

import torch

from workbench.errors import WorkbenchError

START_SECONDS = 180.0
_TICK = 0.05  # between looks at whether it was cancelled


class WorkerLost(WorkbenchError):
    """The process ended, hung or was cancelled; `status` and `reason` are a `Trial`'s."""

    def __init__(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(f"the worker {status}: {reason}")


class Worker:
    """Ask it jobs, one at a time. interpret: in Triton's interpreter; None: where there is no GPU.

    Use it as a context manager, or `close()` it. `cancel` may be called from any thread.
    """

    def __init__(self, *, interpret: bool | None = None) -> None:
        self.interpret = not torch.cuda.is_available() if interpret is None else interpret
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._errors: Any = None
        self._cancelled = threading.Event()
        self._busy = False
        self._prepared: Any = None
        self.kept: dict[Any, Any] = {}  # what was compiled; outlives the process
        self.started = 0  # how many processes there have been
        self.suspects: set[Any] = set()  # what was being compiled when a process was lost

    def start(self) -> None:
        """Start the process if it does not run, and wait until it has imported everything."""
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        ours, theirs = Pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        if self.interpret:
            environment["TRITON_INTERPRET"] = "1"
        # -P keeps the working directory off sys.path.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workbench.playground.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # keeps Ctrl-C away
        )
        theirs.close()
        self._pipe = ours
        self.started += 1
        self._receive(START_SECONDS, "start")

    def ask(self, job: Any, seconds: float) -> Any:
        """Return the answer to a job; raise `WorkerLost` if there is none within `seconds`.

        A user's mistake is raised as the worker found it.
        """
        self._cancelled.clear()
        self._busy = True
        try:
            self.start()
            reply = self._answer(job, seconds)
        finally:
            self._busy = False
        if isinstance(reply, WorkbenchError):
            raise reply
        self._prepared = getattr(job, "subject", None)
        status = getattr(reply, "status", "")
        if status == "crashed" or (status == "wrong" and self.interpret):
            # The process ends by itself, but the next question must not meet it; and a wrong kernel
            # may have written anywhere, here over the interpreter's own memory.
            self.kill()
        return reply

    def _answer(self, job: Any, seconds: float) -> Any:
        assert self._pipe is not None
        try:
            self._pipe.send(job)
        except OSError:
            self._lost()
        return self._receive(seconds, type(job).__name__)

    def knows(self, subject: Any) -> bool:
        """Whether the running process has this subject's inputs and expected outputs."""
        return self._process is not None and bool(self._prepared == subject)

    def _receive(self, seconds: float, what: str) -> Any:
        assert self._pipe is not None
        deadline = time.monotonic() + seconds
        while not self._pipe.poll(_TICK):
            if self._cancelled.is_set():
                self.kill()
                raise WorkerLost("cancelled", "by request")
            if time.monotonic() > deadline:
                self.kill()
                raise WorkerLost("hung", f"{what} took more than {seconds:g} s; killed")
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return self._lost()

    def _lost(self) -> Any:
        assert self._process is not None
        code = self._process.wait(timeout=20)
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        ended = f"by signal {-code}" if code < 0 else f"with status {code}"
        self.kill()
        if self._cancelled.is_set():
            raise WorkerLost("cancelled", "by request")
        raise WorkerLost("crashed", f"the process ended {ended}{''.join(f': {s}' for s in said)}")

    def cancel(self) -> None:
        """End the job in hand at once: its process is killed, and `ask` raises `WorkerLost`.

        Nothing happens where there is none.
        """
        if not self._busy:
            return
        self._cancelled.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()

    def kill(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._pipe is not None:
            self._pipe.close()
        if self._errors is not None:
            self._errors.close()
        self._process = self._pipe = self._errors = self._prepared = None

    close = kill

    def __enter__(self) -> Self:
        """Return itself; the process ends with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def __del__(self) -> None:
        self.kill()
