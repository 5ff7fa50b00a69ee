"""`%load_ext workbench`: the `%%kernel` magic, for a kernel written in a notebook's cell.

    %%kernel silu_mul --swap llm
    @triton.jit
    def silu_mul_kernel(...): ...

The cell is checked on all the spec's cases, a wrong one is refused with its first failing case and
element, a right one is set beside the current kernel and, with --swap, put into the engine of that
name. `playground.writing.check_kernel` is the same as a function.
"""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from workbench.engine import Engine
from workbench.errors import ConfigError, WorkbenchError
from workbench.playground.client import Worker
from workbench.playground.writing import KernelReport, check_kernel, compare_in_engine

DEFAULT_PROMPT = "def fib(n):\n"


class KernelMagic:
    """What `%%kernel` does, with workers that stay alive from one cell to the next."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.worker, self.compiler = Worker(), Worker(interpret=False)

    def __call__(self, line: str, cell: str) -> KernelReport | None:
        """Run a cell; what it came to is in the variable `kernel_report` too."""
        try:
            wanted = _parser().parse_args(shlex.split(line))
            engine = None if wanted.swap is None else self._engine(wanted.swap)
            report = check_kernel(
                wanted.kernel,
                cell,
                cases=wanted.case,
                dtypes=wanted.dtype,
                target=wanted.target,
                worker=self.worker,
                compiler=self.compiler,
            )
            if engine is not None and report.ok:
                prompt = wanted.prompt or DEFAULT_PROMPT
                swapped = compare_in_engine(engine, report.spec, prompt, wanted.max_tokens)
                report.notes.append(f"  {swapped}")
        except WorkbenchError as error:
            print(f"%%kernel: {error}")  # noqa: T201 - a magic's answer to a mistake
            return None
        self.shell.user_ns["kernel_report"] = report
        return report

    def _engine(self, name: str) -> Engine:
        found = self.shell.user_ns.get(name)
        found = getattr(found, "engine", found)  # an LLM has one
        if not isinstance(found, Engine):
            raise ConfigError(
                "swap", name, "names no engine", "Give the variable of an Engine or LLM."
            )
        return found

    def close(self) -> None:
        """End the workers."""
        self.worker.close()
        self.compiler.close()


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would end the process."""

    def error(self, message: str) -> Any:
        raise ConfigError("%%kernel", message, "cannot be read", f"Usage: {self.format_usage()}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="%%kernel", add_help=False)
    add = parser.add_argument
    add("kernel", help="the op whose kernel the cell holds")
    add("--swap", metavar="ENGINE", help="put it into this Engine or LLM if it is right")
    add("--case", action="append", help="check this case only (may be repeated)")
    add("--dtype", action="append", help="check this dtype only (may be repeated)")
    add("--target", help="compile for this GPU, say cuda:100")
    add("--prompt", help="what the engine is asked before and after the swap")
    add("--max-tokens", type=int, default=8)
    return parser


def register(shell: Any) -> KernelMagic:
    """Give an IPython shell the magic; called by `%load_ext workbench`."""
    magic = KernelMagic(shell)
    shell.register_magic_function(magic, magic_kind="cell", magic_name="kernel")
    return magic
