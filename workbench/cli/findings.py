"""From what a machine has to what will run on it.

`inspect_machine` reads the machine once; `features` draws the conclusions from that record alone,
so that a test can put any machine before it. Used by `workbench doctor`.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from workbench.cli.machine.browser import HOW_TO_GET_ONE, browser_version, find_browser
from workbench.cli.machine.cpu import Cpu, Memory, read_cpu, read_memory
from workbench.cli.machine.gpu import Gpu, read_gpus
from workbench.cli.machine.packages import installed_version, torch_cuda_version, torch_sees_gpu
from workbench.cli.machine.tools import (
    HOW_TO_GET_NODE,
    c_compiler,
    find_ptxas,
    node_version,
    ptxas_version,
)
from workbench.places import EMBEDDED_MODEL, repository_root


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    text: str


@dataclass(frozen=True)
class Machine:
    """What was found; None for what is absent. `gpu_works` says that torch can use the GPU."""

    system: str
    cpu: Cpu
    memory: Memory | None
    gpus: tuple[Gpu, ...]
    gpu_works: bool
    torch: str | None
    torch_cuda: str | None
    triton: str | None
    flashinfer: str | None
    c_compiler: str | None
    ptxas: Path | None
    ptxas_version: str | None
    browser: str | None
    node: str | None
    jupyterlab: str | None
    embedded_model: Path | None


def inspect_machine() -> Machine:
    """Read the machine; takes well under a second where there is no GPU to try."""
    gpus, torch = tuple(read_gpus()), installed_version("torch")
    ptxas, browser = find_ptxas(), find_browser()
    model = repository_root() / EMBEDDED_MODEL
    return Machine(
        system=platform.system(),
        cpu=read_cpu(),
        memory=read_memory(),
        gpus=gpus,
        gpu_works=bool(gpus and torch) and torch_sees_gpu(),
        torch=torch,
        torch_cuda=torch_cuda_version(),
        triton=installed_version("triton"),
        flashinfer=installed_version("flashinfer-python"),
        c_compiler=c_compiler(),
        ptxas=ptxas,
        ptxas_version=ptxas_version(ptxas) if ptxas else None,
        browser=browser_version(browser) if browser else None,
        node=node_version(),
        jupyterlab=installed_version("jupyterlab"),
        embedded_model=model if (model / "config.json").is_file() else None,
    )


def features(machine: Machine) -> list[Finding]:
    """Return what will run, each with the reason and, where it will not, the remedy."""
    return [
        Finding("engine", _engine(machine)),
        Finding("backend on the CPU", _cpu_backend(machine)),
        Finding("Triton kernels", _triton(machine)),
        Finding("FlashInfer", _flashinfer(machine)),
        Finding("compiling to PTX", _ptx(machine)),
        Finding("bfloat16 on the CPU", _bf16(machine)),
        Finding("embedded model", _embedded(machine)),
        Finding("notebooks", _notebooks(machine)),
        Finding("browser tests", "yes" if machine.browser else f"skipped: {HOW_TO_GET_ONE}"),
        Finding("JavaScript tests", "yes" if machine.node else f"skipped: {HOW_TO_GET_NODE}"),
        Finding("GPU tests", "yes" if machine.gpu_works else "skipped: no GPU that torch can use"),
    ]


def _engine(machine: Machine) -> str:
    if machine.torch is None:
        return "no: torch is not installed; run `make setup`"
    if machine.gpu_works:
        count = len(machine.gpus)
        return f"on the GPU and on the CPU ({count} GPU{'s' * (count != 1)})"
    if not machine.gpus:
        return "on the CPU (no NVIDIA GPU)"
    if machine.torch_cuda is None:
        return (
            "on the CPU only: a GPU is there, but torch is a CPU build; "
            "remove .venv and run `make setup TORCH=cuda`"
        )
    return (
        f"on the CPU only: torch, built for CUDA {machine.torch_cuda}, cannot use the GPU; "
        f"is driver {machine.gpus[0].driver} new enough?"
    )


def _cpu_backend(machine: Machine) -> str:
    if machine.system != "Linux":
        return f"sdpa: native kernels run on Linux only, not on {machine.system}"
    if machine.c_compiler is None:
        return "sdpa: native kernels would be faster, but need a C compiler; install gcc or clang"
    return "native: C kernels, compiled for this CPU on first use"


def _triton(machine: Machine) -> str:
    if machine.torch is None or machine.triton is None:
        where = "" if machine.system == "Linux" else f" (there is none for {machine.system})"
        missing = "torch" if machine.torch is None else "triton"
        return f"no: {missing} is not installed{where if missing == 'triton' else ''}"
    if not machine.gpu_works:
        return "interpreter only, no GPU (TRITON_INTERPRET=1): for right answers, not for speed"
    if machine.c_compiler is None:
        return "no: launching needs a C compiler; install gcc or clang"
    return "on the GPU"


def _flashinfer(machine: Machine) -> str:
    if machine.flashinfer is None:
        return 'no: backend="triton+flashinfer" needs `pip install flashinfer-python`'
    if not machine.gpu_works:
        return f"no: {machine.flashinfer} is installed, but it runs on a GPU alone"
    return f'backend="triton+flashinfer", by version {machine.flashinfer}; its kernels need nvcc'


def _ptx(machine: Machine) -> str:
    if machine.triton is None or machine.ptxas is None:
        return "no: triton, which brings the compiler and ptxas, is not installed"
    return "yes: Triton kernels compile for any NVIDIA architecture, with or without a GPU"


def _bf16(machine: Machine) -> str:
    return "in hardware" if machine.cpu.has_bf16 else "emulated: float32 may well be faster"


def _embedded(machine: Machine) -> str:
    if machine.embedded_model is None:
        return f"no: {EMBEDDED_MODEL} is not here; work in a checkout of the repository"
    return 'yes: LLM("tinypy")'


def _notebooks(machine: Machine) -> str:
    if machine.jupyterlab is None:
        return "no: JupyterLab is not installed; run `make setup`"
    return "yes: make lab"
