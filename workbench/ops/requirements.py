"""Whether Triton's kernels can run here: the package, a GPU it compiles for, its assembler,
its instructions for fp8; and whether FlashInfer's can.

Asked when a Triton backend is made; the interpreter needs the package alone.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from workbench.errors import ConfigError, telling_line
from workbench.kernels.quantised_kv import FP8


def lacks_fp8(device: torch.device) -> bool:
    """Return whether a device is a GPU that has no instructions for fp8 (below capability 8.9)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9)


def refuse_fp8(dtype: torch.dtype, device: torch.device) -> None:
    """Raise `ConfigError` for an fp8 cache; called where `lacks_fp8`."""
    if dtype == FP8:
        problem = f"the kernels convert fp8 from capability 8.9 on, and {device} has less"
        raise ConfigError("cache_dtype", "fp8", problem, "Use int8, or the `sdpa` backend.")


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


def require_flashinfer(device: torch.device) -> None:
    """Raise `ConfigError` unless FlashInfer is installed, and there is a GPU for it."""
    problem, fix = "", "Use backend="
    if find_spec("flashinfer") is None:
        problem = "flashinfer is not installed"
        fix = "Run `pip install flashinfer-python`, or leave backend at "
    elif device.type != "cuda":
        problem = f"FlashInfer runs on NVIDIA GPUs, not on {device}"
    else:
        try:
            import flashinfer  # noqa: F401  (what it needs in turn may be missing or unfit)
        except Exception as error:  # it raises RuntimeError where its parts do not fit together
            problem = f"flashinfer cannot be imported: {telling_line(error)}"
            raise _no_flashinfer(problem, 'Mend it, or use backend="triton".') from error
    if problem:
        raise _no_flashinfer(problem, f'{fix}"auto".')


def _no_flashinfer(problem: str, fix: str) -> ConfigError:
    return ConfigError("backend", "triton+flashinfer", problem, fix)


def has_ptxas() -> bool:
    """Whether Triton finds the assembler that its CUDA kernels need."""
    from triton import knobs

    try:
        return knobs.nvidia.ptxas is not None
    except RuntimeError:  # Triton's way to say that it does not
        return False
