"""Kernels that start while the one before them still runs (programmatic dependent launch, Hopper).

A step of few rows is some 300 short kernels, and between two of them the GPU drains and fills
again. A kernel that takes EARLY lets its successor be set up when its own programs have all
started, and itself waits for its predecessor's end before it touches anything but weights, which
nobody writes during a step. So order is kept along the whole chain; a kernel that knows nothing of
this starts, as ever, when all before it have ended.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from workbench.kernels.launch import INTERPRETED

CAPABILITY = 90


def starts_early(device: torch.device) -> bool:
    """Return whether kernels on a device take EARLY: on a GPU of capability 9.0 or more."""
    if device.type != "cuda" or INTERPRETED:
        return False
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor >= CAPABILITY


@triton.jit
def await_previous(EARLY: tl.constexpr):
    """Let the next kernel's programs come, then wait until the kernel before has ended."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def load_ahead(pointers, mask=None, other=None):
    """Load what no kernel of a pass writes (weights, tables), also before `await_previous`.

    It was there before the pass began, whose first kernel waits for all that was before it.
    """
    return tl.load(pointers, mask=mask, other=other)


@triton.jit
def prefetch(pointers):
    """Ask for the cache lines of pointers to be brought to L2; nothing waits for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
        "=r,l", [pointers.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1)  # fmt: skip
