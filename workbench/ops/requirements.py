"""Whether Triton's kernels can run here: the package, a GPU it compiles for, its assembler.

Asked when a Triton backend is made; the interpreter needs the package alone.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from workbench.errors import ConfigError


def require_triton(device: torch.device) -> None:
    """Raise `ConfigError` unless Triton kernels can run on a device."""
    problem, fix = "", "Use the `sdpa` backend"
    if find_spec("triton") is None:
        problem, fix = "triton is not installed", f"{fix}, or install triton (Linux only)."
    elif device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            problem, fix = f"the GPU is of capability {major}.{minor}, below 8.0", f"{fix}."
        elif not has_ptxas():
            problem = "Triton finds no ptxas, which turns kernels into machine code"
            fix += ", install triton's own wheel, or set TRITON_PTXAS_PATH to CUDA's."
    else:
        from workbench.kernels.launch import INTERPRETED

        if not INTERPRETED:
            problem = f"Triton has no compiler for device {device.type!r}"
            fix += (
                ", use a CUDA GPU, or start Python with TRITON_INTERPRET=1, which interprets the "
                "kernels (exact, and thousands of times slower)."
            )
    if problem:
        raise ConfigError("backend", "triton", problem, fix)


def has_ptxas() -> bool:
    """Whether Triton finds the assembler that its CUDA kernels need."""
    from triton import knobs

    try:
        return knobs.nvidia.ptxas is not None
    except RuntimeError:  # Triton's way to say that it does not
        return False
