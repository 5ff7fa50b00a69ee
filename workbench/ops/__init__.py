"""The one door to the operations of a forward pass.

`get_backend(name, device)` returns a `Backend` (the contract is `workbench.batch.Backend`). Which
one an engine uses is its own explicit choice, carried in the `ForwardContext`: nothing here is
global.
"""

from __future__ import annotations

import warnings

import torch

from workbench.batch import Backend
from workbench.errors import ConfigError
from workbench.ops.flashinfer import TritonWithFlashInfer
from workbench.ops.invariant import InvariantReference, InvariantTriton
from workbench.ops.native import NativeBackend
from workbench.ops.reference import ReferenceBackend
from workbench.ops.sdpa import SDPABackend
from workbench.ops.triton import TritonBackend, TritonWithLibrary

BACKENDS: dict[str, type[ReferenceBackend]] = {
    "reference": ReferenceBackend,
    "sdpa": SDPABackend,
    "native": NativeBackend,
    "triton": TritonBackend,
    "triton+sdpa": TritonWithLibrary,
    "triton+flashinfer": TritonWithFlashInfer,
}


INVARIANT: dict[str, type[ReferenceBackend]] = {
    "reference": InvariantReference,
    "native": NativeBackend,
    "triton": InvariantTriton,
}


def get_backend(
    name: str = "auto", device: torch.device | str = "cpu", *, batch_invariant: bool = False
) -> Backend:
    """Return the backend of that name for a device; its `chosen_because` says why, for `auto`.

    `auto` is `native` on a CPU, and on a GPU `triton`, with torch's attention for whole prompts
    where the tuned table has it faster; where that cannot run it is `sdpa`, with a warning.
    batch_invariant: one whose results have the same bits whatever the batch; some have none such,
    so `auto` then raises where its first choice cannot run. Raises `ConfigError` for a name that is
    not in `BACKENDS`, and for one that cannot run here, or not so.
    """
    device = torch.device(device)
    if name == "auto":
        if batch_invariant:
            name = "triton" if device.type == "cuda" else "native"
            backend = INVARIANT[name](device)
            backend.chosen_because = "auto: its results do not depend on the batch"
            return backend
        return _best(device)
    if name not in BACKENDS:
        known = ", ".join(["auto", *BACKENDS])
        raise ConfigError("backend", name, "no such backend", f"Known: {known}.")
    if batch_invariant and name not in INVARIANT:
        problem = f"the {name} backend's results depend on the batch"
        fix = f"Use backend={' or '.join(map(repr, INVARIANT))}, or leave batch_invariant out."
        raise ConfigError("batch_invariant", True, problem, fix)
    return (INVARIANT if batch_invariant else BACKENDS)[name](device)


def _best(device: torch.device) -> Backend:
    first, name = (_measured, "triton") if device.type == "cuda" else (_compiled, "native")
    try:
        return first(device)
    except ConfigError as error:
        if error.field != "backend":  # a wrong table is to be mended, not worked around
            raise
        backend = SDPABackend(device)
        reason = f"{name} would be faster, but {error.problem}. {error.fix}"
        backend.chosen_because = f"auto: {reason}"
        warnings.warn(f"backend=sdpa, {backend.chosen_because}", stacklevel=3)
        return backend


def _compiled(device: torch.device) -> Backend:
    backend = NativeBackend(device)
    backend.chosen_because = "auto: compiled for this CPU"
    return backend


def _measured(device: torch.device) -> Backend:
    """Return our kernels, and torch's attention where the tuned table has it faster."""
    backend = TritonBackend(device)
    backend.prefill = "measured"
    backend.chosen_because = f"auto: kernels for this GPU; {backend.tuned.summary(backend.kernels)}"
    return backend


__all__ = [
    "BACKENDS",
    "INVARIANT",
    "Backend",
    "NativeBackend",
    "ReferenceBackend",
    "SDPABackend",
    "TritonBackend",
    "TritonWithFlashInfer",
    "TritonWithLibrary",
    "get_backend",
]
