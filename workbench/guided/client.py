"""`WorkerClient`: starts the compiling process, hands it jobs, and answers futures as they end.

Owned by `GrammarCompiler`. The process starts with the first job and again after it has died; it
ends with the client. One thread waits for answers; nothing here blocks a caller.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue

from workbench.errors import WorkbenchError
from workbench.guided.jobs import Compiled, Job, Refusal
from workbench.guided.vocabulary import Vocabulary

Answer = Compiled | Refusal | WorkbenchError
OnAnswer = Callable[[Answer], None]
# A worker needs no GPU, and a fork of it must not find threads that are gone.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class WorkerClient:
    """Runs jobs in a process of its own. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def start(self) -> None:
        """Start the process, so that the first job need not wait for its imports."""
        with self._lock:
            self._running_worker()

    def submit(self, job: Job, on_answer: OnAnswer) -> None:
        """Send a job; `on_answer` is called once, from another thread, when it has ended."""
        with self._lock:
            self._running_worker().submit(job, on_answer)

    @property
    def process_id(self) -> int | None:
        """The process, where there is one."""
        worker = self._worker
        return worker.process.pid if worker is not None and worker.open else None

    def close(self) -> None:
        """End the process. Jobs on their way are answered with an error. May be called twice."""
        with self._lock:
            if self._worker is not None:
                self._worker.close()
                self._worker = None

    def _running_worker(self) -> _Worker:
        if self._worker is None or not self._worker.open:
            self._worker = _Worker(self._vocabulary)
            weakref.finalize(self, self._worker.close)
        return self._worker


class _Worker:
    """One process, a thread that sends to it and one that receives from it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        ours, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        # -P keeps the working directory off sys.path; a session of its own keeps Ctrl-C away.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workbench.guided.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )
        theirs.close()
        self.open = True
        self._connection = Connection(ours.detach())
        self._lock = threading.Lock()
        self._waiting: dict[int, OnAnswer] = {}
        self._outbox: SimpleQueue[Vocabulary | Job | None] = SimpleQueue()
        self._outbox.put(vocabulary)
        for loop in (self._send, self._receive):
            threading.Thread(target=loop, name="grammar worker", daemon=True).start()

    def submit(self, job: Job, on_answer: OnAnswer) -> None:
        with self._lock:
            if self.open:
                self._waiting[job.job_id] = on_answer
                self._outbox.put(job)
                return
        on_answer(self._end_error())

    def close(self) -> None:
        self.process.kill()
        self._outbox.put(None)

    def _send(self) -> None:
        # A thread of its own: the pipe holds little, and the process may still be importing.
        while (message := self._outbox.get()) is not None:
            try:
                self._connection.send(message)
            except OSError:
                return  # the process has ended, which the receiver sees too

    def _receive(self) -> None:
        while True:
            try:
                job_id, answer = self._connection.recv()
            except (EOFError, OSError):
                break
            with self._lock:
                on_answer = self._waiting.pop(job_id)
            on_answer(answer)
        with self._lock:
            self.open = False
            left, self._waiting = self._waiting, {}
        self._outbox.put(None)
        self.process.wait()
        for on_answer in left.values():
            on_answer(self._end_error())
        self._stderr.close()

    def _end_error(self) -> WorkbenchError:
        said = ""
        if not self._stderr.closed:
            self._stderr.seek(0)
            said = self._stderr.read().decode(errors="replace")[-2000:].strip()
        code = self.process.returncode
        return WorkbenchError(f"the process that compiles grammars ended ({code}). {said}".strip())
