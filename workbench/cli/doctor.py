"""`workbench doctor`: what this machine has, and what will therefore run.

Two tables, or `--json` with the same content. Nothing is changed, torch is only imported to try a
GPU that is there, and what is missing is a finding, not a failure: the status is always 0.
"""

from __future__ import annotations

import argparse
import json
import platform
from typing import TYPE_CHECKING

from workbench.cli.findings import Finding, Machine, features, inspect_machine

if TYPE_CHECKING:
    from workbench.cli.delegate import Commands


def add_parser(commands: Commands) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser("doctor", help="say what this machine has and what will run")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look, and print what was found."""
    machine = inspect_machine()
    has, runs = facts(machine), features(machine)
    if args.json:
        tables = {"machine": has, "runs": runs}
        print(json.dumps({k: {f.name: f.text for f in v} for k, v in tables.items()}, indent=2))
    else:
        print(table("This machine has", has), table("What will therefore run", runs), sep="\n\n")
    return 0


def facts(machine: Machine) -> list[Finding]:
    """Return what is there, one line each; "none" or "not installed" where it is not."""
    cpu, memory = machine.cpu, machine.memory
    gpus = [
        f"{gpu.name}, {gpu.memory_mib / 1024:.0f} GiB, capability {gpu.capability[0]}."
        f"{gpu.capability[1]}, driver {gpu.driver}"
        for gpu in machine.gpus
    ]
    torch = machine.torch or "not installed"
    if machine.torch:
        torch += f", built for CUDA {machine.torch_cuda}" if machine.torch_cuda else ", CPU build"
    ptxas = f"{machine.ptxas_version or 'unknown version'} ({machine.ptxas})"
    return [
        Finding("Python", f"{platform.python_version()} ({platform.python_implementation()})"),
        Finding("platform", platform.platform()),
        Finding("CPU", f"{cpu.model}, {cpu.cores} usable core{'s' * (cpu.cores != 1)}"),
        Finding("CPU instructions", ", ".join(cpu.flags) or "none of those that matter here"),
        Finding("memory", _gib(memory.total, memory.available) if memory else "unknown"),
        Finding("torch", torch),
        Finding("triton", machine.triton or "not installed"),
        Finding("GPU", "; ".join(gpus) or "no NVIDIA GPU"),
        Finding("C compiler", machine.c_compiler or "none"),
        Finding("ptxas", ptxas if machine.ptxas else "none"),
        Finding("browser", machine.browser or "none"),
        Finding("node", machine.node or "none"),
        Finding("JupyterLab", machine.jupyterlab or "not installed"),
        Finding("embedded model", str(machine.embedded_model or "not here")),
    ]


def table(title: str, findings: list[Finding]) -> str:
    """Return a title and the findings in two aligned columns."""
    width = max(len(finding.name) for finding in findings)
    return "\n".join([title, *(f"  {f.name:<{width}}  {f.text}" for f in findings)])


def _gib(total: int, available: int | None) -> str:
    free = "" if available is None else f", {available / 2**30:.1f} GiB available"
    return f"{total / 2**30:.1f} GiB{free}"
