"""`Readback`: integers on their way from a device to the host, so that nobody waits before it must.

Made by `Sampler` right after its tokens are queued, and read when the step is committed.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """A copy of a vector of integers, under way behind what its device was asked for before.

    On CUDA it goes to pinned memory, with an event behind it; on a CPU there is nothing to move.
    """

    __slots__ = ("_arrived", "_values")

    def __init__(self, values: Tensor) -> None:
        self._values, self._arrived = values, None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.current_stream(values.device).record_event()

    def read(self) -> list[int]:
        """Wait for the copy and return it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers: list[int] = self._values.tolist()
        return numbers
