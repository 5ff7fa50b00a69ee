"""A kernel written in a notebook's cell, as a `KernelSpec` of the op that it stands in for.

A cell defines a `@triton.jit` function that has the name and the arguments of one that the shipped
kernel launches, or a `plan` function of the spec's; it may bring `space`, `default` and `keep`. The
text is written to a file of its own and imported, so a worker process gets the same kernel from the
same text. A cell is code of the user's and runs with the user's rights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from triton import knobs
from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpretedFunction

from workbench.atomic_files import atomic_write
from workbench.errors import ConfigError
from workbench.kernels.launch import Launch, Plan
from workbench.kernels.registry import get_spec
from workbench.kernels.spec import KernelSpec

_OPTIONAL = ("space", "default", "keep")
_PRELUDE = "import torch, triton\nimport triton.language as tl\n"


@dataclass(frozen=True)
class CellSpec(KernelSpec):
    """A spec whose kernel is a cell's; `cell` is its text."""

    cell: str = ""

    @property
    def source_hash(self) -> str:
        """Return a hash of the cell: no tuned row of the shipped kernel is valid for it."""
        return hashlib.sha256(self.cell.encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def spec_of_cell(source: str, kernel: str) -> CellSpec:
    """Return a kernel's spec with the cell's kernel in it.

    torch, triton and `tl` are there already. What the cell raises when run is raised as it is; a
    cell that holds no such kernel, and an unknown `kernel`, raise `ConfigError`.
    """
    spec = get_spec(kernel)
    module = _module(source, spec.name)
    found = {name: getattr(module, name) for name in _OPTIONAL if hasattr(module, name)}
    plan = getattr(module, "plan", None)
    if plan is None:
        kernels = {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, JITFunction | InterpretedFunction)
        }
        if not kernels:
            raise ConfigError(
                "cell", spec.name, "it defines no kernel",
                "Define a `@triton.jit` function or a `plan` of this kernel.",
            )  # fmt: skip
        plan = _replacing(spec, kernels)
    fields = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    return CellSpec(**{**fields, "plan": plan, **found, "cell": source})


def _replacing(spec: KernelSpec, kernels: dict[str, Any]) -> Any:
    """Return a `plan` whose launches have the kernels of these names."""

    def plan(**inputs: Any) -> Plan:
        made = spec.plan(**inputs)
        names = {launch.kernel.__name__ for launch in made.launches}
        if made.launches and not names & kernels.keys():
            raise ConfigError(
                "cell", ", ".join(kernels), f"{spec.name} launches no kernel of that name",
                f"It launches: {', '.join(sorted(names))}.",
            )  # fmt: skip
        launches = tuple(_with_kernel(launch, kernels) for launch in made.launches)
        return replace(made, launches=launches)

    return plan


def _with_kernel(launch: Launch, kernels: dict[str, Any]) -> Launch:
    """Return a launch of the cell's kernel; raise `ConfigError` if it takes other arguments."""
    kernel = kernels.get(launch.kernel.__name__)
    if kernel is None:
        return launch
    wanted, takes = list(launch.kernel.arg_names), list(kernel.arg_names)
    if set(wanted) != set(takes):
        raise ConfigError(
            "cell", launch.kernel.__name__, f"it takes {', '.join(takes)}",
            f"The launch passes: {', '.join(wanted)}.",
        )  # fmt: skip
    return replace(launch, kernel=kernel)


def _module(source: str, name: str) -> ModuleType:
    """Import a cell's text from a file: Triton reads a kernel's source from one."""
    text = _PRELUDE + source
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = Path(knobs.cache.dir) / "workbench-cells" / digest  # beside what Triton compiled
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cell_{name}.py"
    with atomic_write(path) as partial:  # whoever else writes the same
        partial.write_text(text, encoding="utf-8")
    dotted = f"_workbench_cell_{name}_{digest}"
    found = importlib.util.spec_from_file_location(dotted, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[dotted] = module  # pickling and inspect look there
    found.loader.exec_module(module)
    return module
