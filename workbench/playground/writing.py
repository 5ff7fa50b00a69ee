"""A kernel written in a cell: checked on every case, set beside the current one, put to work.

`check_kernel` is what `%%kernel` does, as a function. The cell runs in a worker process first, so
one that crashes or hangs costs the notebook nothing; the notebook itself loads it only once it is
right, and only to swap it in.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch

from workbench.engine import Engine
from workbench.errors import ConfigError, WorkbenchError
from workbench.kernels.registry import get_spec
from workbench.kernels.spec import KernelSpec
from workbench.playground import jobs
from workbench.playground.cells import spec_of_cell
from workbench.playground.checking import OK, Checked
from workbench.playground.client import Worker, WorkerLost
from workbench.playground.compiling import CompileFailed, cross_compile
from workbench.playground.subject import Subject
from workbench.sampling_params import SamplingParams

CHECK_SECONDS = 120.0


@dataclass(slots=True)
class KernelReport:
    """What became of a cell's kernel. checks: by (case, dtype), up to the first failure.

    times: microseconds a call, "cell" and "current" (and "library"), measured in turn on `case`;
    empty where nothing can be timed. resources: of both, compiled for `target`.
    """

    kernel: str
    source: str
    checks: dict[tuple[str, str], Checked] = field(default_factory=dict)
    case: str = ""
    target: str = ""
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    resources: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def failure(self) -> str:
        """The first failing case and its element, in words; empty where all are right."""
        for (case, dtype), checked in self.checks.items():
            if checked.status not in (OK, "skipped"):
                return f"case {case!r} in {dtype} is {checked.status}: {checked.reason}"
        return "" if self.checks else "nothing was checked"

    @property
    def ok(self) -> bool:
        """Whether it may stand in for the current kernel."""
        return not self.failure

    @property
    def spec(self) -> KernelSpec:
        """The spec with the cell's kernel, loaded here; raise `ConfigError` if it was refused."""
        if not self.ok:
            raise ConfigError("kernel", self.kernel, f"was refused: {self.failure}", "Mend it.")
        return spec_of_cell(self.source, self.kernel)

    def lines(self) -> list[str]:
        """Return what there is to say, a sentence a line."""
        if not self.ok:
            return [f"{self.kernel}: refused. {self.failure}", *self.notes]
        worst = max(checked.share for checked in self.checks.values())
        count = sum(checked.status == OK for checked in self.checks.values())
        said = [
            f"{self.kernel}: right on {count} cases; at most {worst:.0%} of the tolerance used."
        ]
        for name, us in self.times.items():
            said.append(
                f"  {name}: {us['p50']:.2f} µs [{us['p10']:.2f}..{us['p90']:.2f}] on {self.case}"
            )
        for name, launches in self.resources.items():
            parts = [
                f"{each['kernel']} {each['registers']} registers, {each['spills']} spills, "
                f"{each['shared']} B shared"
                for each in launches
            ]
            said.append(f"  {name} for {self.target}: {'; '.join(parts)}")
        return said + self.notes

    def __repr__(self) -> str:
        """What there is to say."""
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        colour = "#009E73" if self.ok else "#D55E00"
        text = escape("\n".join(self.lines()))
        return f'<pre style="border-left: 3px solid {colour}; padding-left: 8px">{text}</pre>'


def check_kernel(
    kernel: str,
    source: str,
    *,
    cases: Iterable[str] | None = None,
    dtypes: Iterable[str] | None = None,
    target: str | None = None,
    worker: Worker | None = None,
    compiler: Worker | None = None,
    seconds: float = CHECK_SECONDS,
) -> KernelReport:
    """Hold a cell's kernel to the reference on all cases (None), then time or compile it.

    source: see `playground.cells`. dtypes None: bfloat16 and float32 on a GPU, float16 and float32
    in the interpreter, which runs the small cases. worker, compiler: kept ones, else started here.
    seconds: for each case. Raises `ConfigError` for unknown names; what is wrong with the kernel is
    in the report.
    """
    spec = get_spec(kernel)
    cuda = torch.cuda.is_available()
    names = list(cases or (name for name, case in spec.cases.items() if cuda or case.small))
    for name in names:
        if name not in spec.cases:
            spec.inputs(name, torch.float32)  # raises, with the known names
    kinds = list(dtypes or (("bfloat16" if cuda else "float16"), "float32"))
    report = KernelReport(kernel, source)
    own: list[Worker] = []
    try:
        if worker is None:
            own.append(worker := Worker())
        _check_all(report, names, kinds, worker, seconds)
        if report.ok:
            if compiler is None:
                own.append(compiler := Worker(interpret=False))
            _set_beside(report, spec, kinds[0], worker, compiler, target)
    finally:
        for each in own:
            each.close()
    return report


def _check_all(
    report: KernelReport, cases: list[str], dtypes: list[str], worker: Worker, seconds: float
) -> None:
    for dtype in dtypes:
        for case in cases:
            subject = Subject(report.kernel, case, dtype, source=report.source)
            try:
                answer = worker.ask(jobs.Check(subject), seconds)
            except WorkerLost as lost:
                answer = Checked(case, lost.status, lost.reason)
            except WorkbenchError as error:
                answer = Checked(case, "failed", str(error))
            if isinstance(answer, jobs.Failed):
                answer = Checked(case, answer.status, answer.reason)
            report.checks[case, dtype] = answer
            if answer.status not in (OK, "skipped"):
                return


def _set_beside(
    report: KernelReport,
    spec: KernelSpec,
    dtype: str,
    worker: Worker,
    compiler: Worker,
    target: str | None,
) -> None:
    """Time it beside the current one where there is a GPU, else compile both."""
    quick = [name for name, case in spec.cases.items() if case.quick]
    small = [name for name, case in spec.cases.items() if case.small]
    timed = torch.cuda.is_available()
    report.case = quick[0] if timed and quick else small[-1]
    subject = Subject(spec.name, report.case, dtype, source=report.source)
    report.target = target or "cuda:90"
    if timed:
        major, minor = torch.cuda.get_device_capability()
        report.target = target or f"cuda:{10 * major + minor}"
        answer = worker.ask(jobs.Against(subject, 1.0), CHECK_SECONDS)
        if isinstance(answer, jobs.Failed):
            report.notes.append(f"  not timed: {answer.reason}")
        else:
            report.times = answer
    else:
        report.notes.append("  Nothing is timed without a GPU.")
    for name, source in (("cell", report.source), ("current", None)):
        try:
            compiled = cross_compile(
                *(spec.name, small[-1], None, report.target),
                dtype=dtype,
                source=source,
                worker=compiler,
            )
            report.resources[name] = compiled.resources
        except CompileFailed as error:
            report.notes.append(f"  {name} for {report.target}: {error}")


# --- in an engine --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Swapped:
    """One prompt before and after a swap: token ids and the median milliseconds of a step.

    longest_ms: the longest step after it, in which the new kernel was compiled and captured.
    """

    kernel: str
    before: tuple[list[int], float]
    after: tuple[list[int], float]
    swap_ms: float
    longest_ms: float

    @property
    def same_tokens(self) -> bool:
        """Whether the engine says the same."""
        return self.before[0] == self.after[0]

    def __repr__(self) -> str:
        """What changed."""
        (old, was), (new, now) = self.before, self.after
        said = "the same tokens" if self.same_tokens else f"other tokens: {old} became {new}"
        return (
            f"{self.kernel} swapped in {self.swap_ms:.1f} ms: {said} ({len(new)}), "
            f"{was:.2f} -> {now:.2f} ms a step; the longest after it {self.longest_ms:.0f} ms"
        )


def compare_in_engine(
    engine: Engine, spec: KernelSpec, prompt: str | list[int], max_tokens: int = 16
) -> Swapped:
    """Run a prompt greedily, `Engine.swap` a kernel in, run it again; the new kernel stays."""
    before, _ = _timed_run(engine, prompt, max_tokens)
    started = time.perf_counter()
    engine.swap(kernel=spec)
    swap_ms = 1e3 * (time.perf_counter() - started)
    after, longest_ms = _timed_run(engine, prompt, max_tokens)
    return Swapped(spec.name, before, after, swap_ms, longest_ms)


def _timed_run(
    engine: Engine, prompt: str | list[int], max_tokens: int
) -> tuple[tuple[list[int], float], float]:
    """Return a prompt's greedy tokens with the median milliseconds of its steps, and the most."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    request_id = engine.add(prompt, params)
    times = []
    while not engine.output(request_id).finished:
        started = time.perf_counter()
        engine.step()
        times.append(1e3 * (time.perf_counter() - started))
    tokens = engine.output(request_id).outputs[0].token_ids
    decodes = sorted(times[1:]) or times  # the first step is the prompt's
    return (list(tokens), decodes[len(decodes) // 2]), max(times)
