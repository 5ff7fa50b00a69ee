"""How many warps of a kernel a multiprocessor can hold, and what holds it back.

From the limits in NVIDIA's CUDA C++ Programming Guide ("Technical Specifications per Compute
Capability") and AMD's CDNA 3 ISA reference; what runs may be fewer, if the grid is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.kernels.cross_compile import parse_target


@dataclass(frozen=True, slots=True)
class _Limits:
    """Of a multiprocessor (AMD: compute unit): warps, programs, registers a lane, shared bytes."""

    warps: int
    programs: int
    registers: int  # of 32 bits, for all its warps' lanes
    unit: int  # registers are given to a warp in steps of so many
    shared: int
    reserved: int  # shared bytes that each program pays beside its own
    lanes: int = 32


_CUDA = {
    80: _Limits(64, 32, 65536, 256, 164 << 10, 1 << 10),
    86: _Limits(48, 16, 65536, 256, 100 << 10, 1 << 10),
    89: _Limits(48, 24, 65536, 256, 100 << 10, 1 << 10),
    90: _Limits(64, 32, 65536, 256, 228 << 10, 1 << 10),
    100: _Limits(64, 32, 65536, 256, 228 << 10, 1 << 10),
    120: _Limits(48, 32, 65536, 256, 100 << 10, 1 << 10),
}
# Four SIMDs of 512 registers a lane and 8 waves each; registers come in eights.
_CDNA3 = _Limits(32, 32, 4 * 512 * 64, 8 * 64, 64 << 10, 0, lanes=64)


def occupancy(target: str, registers: int, shared: int, num_warps: int) -> dict[str, Any] | None:
    """Return {"warps", "of", "limit"} for a kernel; None for a target whose limits are not known.

    registers: a thread. shared: bytes a program. limit: "registers", "shared memory", "warps" or
    "programs".
    """
    parsed = parse_target(target)
    limits = _CDNA3 if parsed.backend == "hip" else _CUDA.get(int(parsed.arch))
    if limits is None or (parsed.backend == "hip" and parsed.arch != "gfx942"):
        return None
    per_warp = -(-max(registers, 1) * limits.lanes // limits.unit) * limits.unit
    # Warps live on one of four quarters of the register file.
    by_registers = 4 * (limits.registers // 4 // per_warp) // num_warps
    by_shared = limits.shared // max(shared + limits.reserved, 1)
    bounds = {
        "registers": by_registers,
        "shared memory": by_shared,
        "warps": limits.warps // num_warps,
        "programs": limits.programs,
    }
    limit = min(bounds, key=lambda name: bounds[name])
    return {"warps": bounds[limit] * num_warps, "of": limits.warps, "limit": limit}
