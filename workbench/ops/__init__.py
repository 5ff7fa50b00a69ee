"""The one door to the operations of a forward pass.

`get_backend(name, device)` returns a `Backend` (the contract is `workbench.batch.Backend`). Which
one an engine uses is its own explicit choice, carried in the `ForwardContext`: nothing here is
global.
"""

from __future__ import annotations

import torch

from workbench.batch import Backend
from workbench.errors import ConfigError
from workbench.ops.reference import ReferenceBackend
from workbench.ops.sdpa import SDPABackend
from workbench.ops.triton import TritonBackend

BACKENDS: dict[str, type[ReferenceBackend]] = {
    "reference": ReferenceBackend,
    "sdpa": SDPABackend,
    "triton": TritonBackend,
}


def get_backend(name: str = "auto", device: torch.device | str = "cpu") -> Backend:
    """Return the backend of that name for a device; `auto` is `sdpa`, the faster on every device.

    Raises `ConfigError` for a name that is not in `BACKENDS`, and for one that cannot run here.
    """
    chosen = "sdpa" if name == "auto" else name
    if chosen not in BACKENDS:
        known = ", ".join(["auto", *BACKENDS])
        raise ConfigError("backend", name, "no such backend", f"Known: {known}.")
    return BACKENDS[chosen](torch.device(device))


__all__ = ["BACKENDS", "Backend", "ReferenceBackend", "SDPABackend", "TritonBackend", "get_backend"]
