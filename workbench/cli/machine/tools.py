"""Programs beside Python: a C compiler, ptxas (the assembler of NVIDIA's PTX), and node.

Triton needs a C compiler to launch a kernel on a GPU, and carries a ptxas of its own, which is
looked at first because it is the one that fits the PTX it writes.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from workbench.cli.machine.command import output_of
from workbench.cli.machine.packages import package_folder

HOW_TO_GET_NODE = "install node 18 or newer"


def c_compiler() -> str | None:
    """Return the first line of `--version` of the C compiler that CPU kernels are made with.

    Looked for in the order of `workbench.ops.compiled`: $CC, else cc, gcc or clang.
    """
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name) and (text := output_of([name, "--version"])):
            return text.splitlines()[0]
    return None


def find_ptxas() -> Path | None:
    """Return the ptxas that comes with triton, else the one on PATH."""
    folder = package_folder("triton")
    bundled = folder / "backends" / "nvidia" / "bin" / "ptxas" if folder else None
    if bundled and os.access(bundled, os.X_OK):
        return bundled
    found = shutil.which("ptxas")
    return Path(found) if found else None


def ptxas_version(ptxas: Path) -> str | None:
    """Return the CUDA release of a ptxas, such as "12.8"."""
    found = re.search(r"release (\d+\.\d+)", output_of([str(ptxas), "--version"]) or "")
    return found[1] if found else None


def node_version() -> str | None:
    """Return the version of node, which only the tests of the views' JavaScript need."""
    return output_of(["node", "--version"]) if shutil.which("node") else None
