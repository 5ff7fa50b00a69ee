"""The process that compiles grammars: `python -P -m workbench.guided.worker FD`, started by
`WorkerClient`.

It forks a child for every job, with a timer, a memory limit and a small stack, all enforced by the
kernel: a compile that runs away dies alone, whatever library code it is in, and the next one need
not import anything again. It runs no model, opens no file and no socket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import resource
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe, wait

import psutil

from workbench.guided.jobs import Compiled, Job, Refusal, Refused
from workbench.guided.llguidance_backend import LLGuidanceBackend
from workbench.guided.vocabulary import Vocabulary
from workbench.guided.xgrammar_backend import XGrammarBackend

MAX_CHILDREN = 2
# Half of what a thread of the engine has: what fits here when compiled fits there when loaded.
STACK_BYTES = 4 * 2**20
Backends = dict[str, XGrammarBackend | LLGuidanceBackend]


@dataclasses.dataclass(frozen=True, slots=True)
class Child:
    """A job on its way."""

    job: Job
    pid: int
    answers: Connection


def main(descriptor: int) -> None:
    """Serve jobs from the connection until the other side closes it."""
    engine = Connection(descriptor)
    vocabulary: Vocabulary = engine.recv()
    backends = _backends(vocabulary)
    importlib.import_module("jsonschema")  # once, before a fork: else each child would
    queue: deque[Job] = deque()
    children: list[Child] = []
    try:
        while True:
            while queue and len(children) < MAX_CHILDREN:
                children.append(_start(queue.popleft(), backends, engine))
            for ready in wait([engine, *(child.answers for child in children)]):
                if ready is engine:
                    queue.append(engine.recv())
                    continue
                (child,) = (c for c in children if c.answers is ready)
                children.remove(child)
                engine.send((child.job.job_id, _collect(child)))
    except EOFError:
        for child in children:
            os.kill(child.pid, signal.SIGKILL)


def _backends(vocabulary: Vocabulary) -> Backends:
    exact = XGrammarBackend(vocabulary)

    def encode(text: str) -> list[int]:
        raise AssertionError("the worker computes no masks, so it never tokenizes")

    return {
        "xgrammar": exact,
        "llguidance": LLGuidanceBackend(vocabulary, encode, exact.check_grammar),
    }


def _start(job: Job, backends: Backends, engine: Connection) -> Child:
    answers, answer = Pipe(duplex=False)
    pid = os.fork()
    if pid:
        answer.close()
        return Child(job, pid, answers)
    # The child. Nothing may reach the loop above again, whatever happens.
    try:
        engine.close()
        _limit(job)
        answer.send(_compile(job, backends))
    finally:
        os._exit(0)


def _limit(job: Job) -> None:
    """Let the kernel end this process when its time or its memory is up."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, job.max_seconds)
    bound = psutil.Process().memory_info().vms + job.max_bytes
    for limit, value in ((resource.RLIMIT_AS, bound), (resource.RLIMIT_STACK, STACK_BYTES)):
        # macOS accepts no limit on memory; the timer holds there too.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))


def _compile(job: Job, backends: Backends) -> Compiled | Refusal:
    """Try the job's backends in order; report all that refused, the first one's advice."""
    refusals: list[Refused] = []
    for name in job.backends:
        try:
            with _captured_stderr() as text:
                compiled = backends[name].compile(job)
            _refuse_warnings(text[0])
            return compiled
        except Refused as error:
            refusals.append(error)
        except RecursionError:
            refusals.append(Refused("nested too deeply", "Name its parts, or flatten it."))
        except MemoryError:
            refusals.append(Refused(memory_problem(job), "Make it smaller."))
    problems = dict.fromkeys(refusal.problem for refusal in refusals)
    return Refusal("; ".join(problems), refusals[0].fix)


@contextlib.contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """Give what a library wrote to file descriptor 2, after the block."""
    text: list[str] = []
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield text
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            text.append(file.read().decode(errors="replace"))


def _refuse_warnings(text: str) -> None:
    """xgrammar warns on stderr where it ignores something."""
    for line in text.splitlines():
        if "Warning:" in line:
            raise Refused(f"xgrammar: {line.split('Warning:')[1].strip()}")


def _collect(child: Child) -> Compiled | Refusal:
    try:
        answer: Compiled | Refusal = child.answers.recv()
    except EOFError:
        answer = Refusal("", "Make it smaller.")
    child.answers.close()
    _, status = os.waitpid(child.pid, 0)
    if isinstance(answer, Refusal) and not answer.problem:
        return dataclasses.replace(answer, problem=_death(child.job, status))
    return answer


def _death(job: Job, status: int) -> str:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGALRM:
        return f"compiling it took more than {job.max_seconds:g} s"
    if number == signal.SIGSEGV:
        return "compiling it overflowed the stack, so it is nested too deeply"
    return memory_problem(job)


def memory_problem(job: Job) -> str:
    """Return the words for a job that ended for lack of memory."""
    return f"compiling it took more than {job.max_bytes / 2**20:.0f} MiB"


if __name__ == "__main__":
    main(int(sys.argv[1]))
