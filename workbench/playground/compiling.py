"""`cross_compile`: what the compiler makes of a configuration, for a GPU that is here or not.

Every stage as text (TTIR, TTGIR, LLVM, PTX and SASS, or AMDGCN), each line with the source line it
comes from, and what the kernel takes. Compiling happens in a worker that does not interpret, so it
works in any notebook; what was compiled is kept, here and in Triton's own cache.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import triton
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from workbench.errors import ConfigError, WorkbenchError
from workbench.kernels.cross_compile import compile_for, machine_code, parse_target, resources
from workbench.kernels.launch import Launch
from workbench.kernels.spec import Inputs, KernelSpec
from workbench.playground import jobs
from workbench.playground.client import Worker, WorkerLost
from workbench.playground.listings import STAGES, source_lines
from workbench.playground.occupancy import occupancy
from workbench.playground.subject import Subject, config_key

COMPILE_SECONDS = 60.0
_KEPT = 32  # by a worker
_THREADS = 4
_NOISE = re.compile(r"/\*[0-9a-f]{4,}\*/|//.*|;\s*\S+\.py:.*|\bloc\(#loc\d*\)|, !dbg !\d+")
_REGISTER = re.compile(r"(?<![\w.])(%?[a-zA-Z]{1,2})\d+\b")  # which one is the allocator's whim
_NOT_CODE = (".loc", "#loc", "!", "$L__tmp", ".Ltmp")


class CompileFailed(WorkbenchError):
    """A configuration did not compile; `status` and `reason` are a `Trial`'s."""

    def __init__(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(f"{status}: {reason}")


@dataclass(frozen=True, slots=True)
class CompiledLaunch:
    """One kernel of a plan. texts: by stage. lines: by stage, the source line of each text line.

    source: the file that the kernel is in, whose first line is 1. A text line that comes from
    elsewhere has source line 0.
    """

    kernel: str
    source: str
    texts: Mapping[str, str]
    lines: Mapping[str, list[int]]
    resources: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A configuration's launches, compiled for a target in `seconds`."""

    kernel: str
    case: str
    config: Mapping[str, int]
    target: str
    launches: tuple[CompiledLaunch, ...]
    seconds: float

    @property
    def resources(self) -> list[dict[str, Any]]:
        """What each launch takes, as in a `Trial`, and its occupancy."""
        return [dict(launch.resources) for launch in self.launches]


def cross_compile(
    kernel: str | KernelSpec,
    case: str,
    config: Mapping[str, int] | None = None,
    target: str = "cuda:90",
    *,
    dtype: str = "bfloat16",
    source: str | None = None,
    worker: Worker | None = None,
) -> Compiled:
    """Compile a kernel's configuration (None: its default) on a case for a target.

    target: `cuda:80`, `cuda:90`, `cuda:100`, `hip:gfx942`, … source: a cell's text. worker: one
    that does not interpret; None starts one for this call. Raises `ConfigError` for unknown names
    and `CompileFailed` with the compiler's reason.
    """
    parse_target(target)
    name = kernel if isinstance(kernel, str) else kernel.name
    subject = Subject(name, case, dtype, source=source)
    key = (subject, None if config is None else config_key(config), target)
    if worker is None:
        with Worker(interpret=False) as own:
            return _compiled(own, subject, config, target)
    kept: dict[Any, Compiled] = worker.kept
    if key not in kept:
        kept[key] = _compiled(worker, subject, config, target)
        if len(kept) > _KEPT:
            del kept[next(iter(kept))]
    return kept[key]


def _compiled(
    worker: Worker, subject: Subject, config: Mapping[str, int] | None, target: str
) -> Compiled:
    job = jobs.Compile(subject, None if config is None else dict(config), target)
    try:
        answer = worker.ask(job, COMPILE_SECONDS)
    except WorkerLost as lost:
        raise CompileFailed(lost.status, lost.reason) from lost
    if isinstance(answer, jobs.Failed):
        raise CompileFailed(answer.status, answer.reason)
    assert isinstance(answer, Compiled)
    return answer


def compile_here(subject: Subject, config: Mapping[str, int] | None, target: str) -> Compiled:
    """Compile in this process, which must not interpret; called by a worker."""
    started = time.perf_counter()
    spec = subject.spec
    large = not spec.cases[subject.case].small if subject.case in spec.cases else False
    # A large case's tensors are only described: nothing is allocated.
    mode: AbstractContextManager[Any] = FakeTensorMode() if large else nullcontext()
    with mode, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        inputs = _inputs(spec, subject)
        chosen = dict(spec.default(**inputs) if config is None else config)
        plan = spec.plan(**inputs, config=chosen)
        with ThreadPoolExecutor(_THREADS) as pool:  # compilers work without Python's lock
            launches = tuple(pool.map(partial(_compile_one, target=target), plan.launches))
    seconds = round(time.perf_counter() - started, 3)
    return Compiled(subject.kernel, subject.case, chosen, target, launches, seconds)


def _inputs(spec: KernelSpec, subject: Subject) -> Inputs:
    try:
        return spec.inputs(subject.case, subject.torch_dtype)
    except DataDependentOutputException as error:
        raise ConfigError(
            "case", subject.case, "its launches hang on its values, and it is too large to make",
            "Take one of the small cases with the same shapes.",
        ) from error  # fmt: skip


def _compile_one(launch: Launch, target: str) -> CompiledLaunch:
    compiled = compile_for(launch, target)
    code = machine_code(compiled)
    name = launch.kernel.__name__
    path = inspect.getsourcefile(launch.kernel.fn) or ""
    texts = {stage: compiled.asm[stage] for stage in STAGES if stage in compiled.asm}
    if "amdgcn" not in texts:
        texts["sass"] = code
    taken = asdict(resources(compiled, name, target, code))
    num_warps = compiled.metadata.num_warps
    taken |= {"num_warps": num_warps, "programs": math.prod(launch.grid)}
    taken["occupancy"] = occupancy(target, taken["registers"], taken["shared"], num_warps)
    with open(path, encoding="utf-8") as file:
        source = file.read()
    lines = {stage: source_lines(stage, text, path) for stage, text in texts.items()}
    for folder in (Path(path).parent, Path(triton.__file__).parents[1]):
        texts = {stage: _without(text, str(folder)) for stage, text in texts.items()}
    return CompiledLaunch(name, source, texts, lines, taken)


def _without(text: str, folder: str) -> str:
    """Return a text that does not say where on this machine its files are."""
    return text.replace(f"{folder}/", "").replace(folder, "")


def diff(first: Compiled, second: Compiled, stage: str, launch: int = 0) -> list[str]:
    """Return a unified diff of a stage of two configurations, addresses, debug lines and
    the numbers of registers aside."""
    one, other = (_plain(each.launches[launch].texts[stage], stage) for each in (first, second))
    names = [f"{config_key(each.config)} ({each.target})" for each in (first, second)]
    return list(difflib.unified_diff(one, other, names[0], names[1], lineterm="", n=2))


def _plain(text: str, stage: str) -> list[str]:
    """Return a text's lines without what differs between any two compilations."""
    lines = [_NOISE.sub("", line).rstrip() for line in text.splitlines()]
    if stage in ("ptx", "sass", "amdgcn"):
        lines = [_REGISTER.sub(r"\1", line) for line in lines]
    return [line for line in lines if line and not line.lstrip().startswith(_NOT_CODE)]
