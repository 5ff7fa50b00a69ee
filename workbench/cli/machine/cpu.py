"""The processor and the memory: model, usable cores, instruction sets that matter here, bytes.

Linux is read from /proc and the control group, macOS through `sysctl`. The flags named are those
that decide which number format is fast on the CPU.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from workbench.cli.machine.command import output_of

# Flag as the system spells it -> name as people write it.
FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "ARM-BF16",
    "i8mm": "ARM-I8MM",
}
BF16_FLAGS = frozenset({"AVX512-BF16", "AMX-BF16", "ARM-BF16"})


@dataclass(frozen=True)
class Cpu:
    """A processor: `cores` are those this process may use, `flags` a subset of `FLAGS`' names."""

    model: str
    cores: int
    flags: tuple[str, ...]

    @property
    def has_bf16(self) -> bool:
        """Whether bfloat16 products run in hardware."""
        return bool(BF16_FLAGS & set(self.flags))


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory, of the machine or of the container where that has a limit."""

    total: int
    available: int | None


def read_cpu() -> Cpu:
    """Return the processor; its model is the bare architecture where the system tells no more."""
    if platform.system() == "Darwin":
        model = output_of(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.machine()
        return Cpu(model, usable_cores(), _darwin_flags())
    info = _text("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return Cpu(found[1] if found else platform.machine(), usable_cores(), parse_flags(info))


def parse_flags(cpuinfo: str) -> tuple[str, ...]:
    """Return which of `FLAGS` a /proc/cpuinfo text names (x86 `flags`, Arm `Features`)."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return _named(found[1].split() if found else ())


def usable_cores() -> int:
    """Return how many cores this process may run on: affinity and the container's quota counted."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = re.fullmatch(r"(\d+) (\d+)", _text("/sys/fs/cgroup/cpu.max").strip())
    if quota:
        cores = min(cores or 1, max(1, int(quota[1]) // int(quota[2])))
    return cores or 1


def read_memory() -> Memory | None:
    """Return the memory, or None where the system does not tell."""
    if platform.system() == "Darwin":
        size = output_of(["sysctl", "-n", "hw.memsize"])
        return Memory(int(size), None) if size else None
    info = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", _text("/proc/meminfo"), re.M))
    if "MemTotal" not in info:
        return None
    total, available = int(info["MemTotal"]) * 1024, int(info.get("MemAvailable", 0)) * 1024
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit() and int(limit) < total:
        used = int(_text("/sys/fs/cgroup/memory.current").strip() or 0)
        return Memory(int(limit), min(available, int(limit) - used))
    return Memory(total, available)


def _darwin_flags() -> tuple[str, ...]:
    arm = platform.machine() == "arm64"
    bf16 = arm and output_of(["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]) == "1"
    words = (output_of(["sysctl", "-n", "machdep.cpu.leaf7_features"]) or "").lower().split()
    return _named([*words, *(["asimd"] if arm else []), *(["bf16"] if bf16 else [])])


def _named(words: Collection[str]) -> tuple[str, ...]:
    return tuple(name for flag, name in FLAGS.items() if flag in words)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
