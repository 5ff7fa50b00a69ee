"""What travels between `GrammarCompiler` and its worker process: a job, and one of two answers.

Plain data, pickled over a private pipe between two processes of ours. `Refused` is how the modules
that run in the worker say that a constraint cannot be held to.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.guided_params import GuideKind


@dataclass(frozen=True, slots=True)
class Job:
    """One constraint to compile. backends: the libraries to try, in this order. max_bytes: memory
    that compiling may take on top of what the worker holds; max_seconds: of wall time."""

    job_id: int
    kind: GuideKind
    source: str
    backends: tuple[str, ...]
    max_whitespace: int | None
    max_seconds: float
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Compiled:
    """payload: what the backend's `load` makes a matcher of. num_bytes: memory it holds."""

    backend: str
    payload: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a constraint was not compiled, one clause, and what to do."""

    problem: str
    fix: str


class Refused(Exception):
    """This constraint cannot be held to; `problem` and `fix` go into a `RequestError`."""

    def __init__(self, problem: str, fix: str = "Change the constraint.") -> None:
        self.problem, self.fix = problem, fix
        super().__init__(problem)
