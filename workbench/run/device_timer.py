"""`DeviceTimer`: how long a pass takes on a GPU, as the GPU itself counts.

Made by the runner for each pass while somebody listens to the engine, and read when its step is
committed: then the tokens have been read back, so the pass is over and nothing waits for it.
"""

from __future__ import annotations

import torch


class DeviceTimer:
    """Two marks in the current stream of a CUDA device; the first is set when it is made."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._begin.record(self._stream)

    def stop(self) -> None:
        """Set the second mark."""
        self._end.record(self._stream)

    @property
    def seconds(self) -> float | None:
        """Seconds between the marks; None if the device has not passed the second yet."""
        if not self._end.query():  # type: ignore[no-untyped-call]
            return None
        return 1e-3 * float(self._begin.elapsed_time(self._end))
