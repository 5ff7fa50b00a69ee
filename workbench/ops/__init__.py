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
from workbench.ops.native import NativeBackend
from workbench.ops.reference import ReferenceBackend
from workbench.ops.sdpa import SDPABackend
from workbench.ops.triton import TritonBackend

BACKENDS: dict[str, type[ReferenceBackend]] = {
    "reference": ReferenceBackend,
    "sdpa": SDPABackend,
    "native": NativeBackend,
    "triton": TritonBackend,
}


def get_backend(name: str = "auto", device: torch.device | str = "cpu") -> Backend:
    """Return the backend of that name for a device; its `chosen_because` says why, for `auto`.

    `auto` is `triton` on a GPU and `native` on a CPU; where that cannot run it is `sdpa`, with a
    warning. Raises `ConfigError` for a name that is not in `BACKENDS`, and for one that
    cannot run here.
    """
    device = torch.device(device)
    if name == "auto":
        return _best(device)
    if name not in BACKENDS:
        known = ", ".join(["auto", *BACKENDS])
        raise ConfigError("backend", name, "no such backend", f"Known: {known}.")
    return BACKENDS[name](device)


def _best(device: torch.device) -> Backend:
    backend: ReferenceBackend
    first, fit = (
        (TritonBackend, "kernels for this GPU")
        if device.type == "cuda"
        else (NativeBackend, "compiled for this CPU")
    )
    try:
        backend = first(device)
        backend.chosen_because = f"auto: {fit}"
    except ConfigError as error:
        backend = SDPABackend(device)
        reason = f"{first.name} would be faster, but {error.problem}. {error.fix}"
        backend.chosen_because = f"auto: {reason}"
        warnings.warn(f"backend=sdpa, {backend.chosen_because}", stacklevel=3)
    return backend


__all__ = [
    "BACKENDS",
    "Backend",
    "NativeBackend",
    "ReferenceBackend",
    "SDPABackend",
    "TritonBackend",
    "get_backend",
]
