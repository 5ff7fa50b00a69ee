"""`SPECS`: every kernel by name. The test of all kernels, the tuner and the benchmark walk it.

A kernel that is not in it is not tested: a test holds every file with a `SPEC` to be listed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from workbench.errors import ConfigError
from workbench.kernels import (
    gemv,
    layer_norm,
    lora_expand,
    lora_gain,
    lora_shrink,
    matmul,
    paged_decode_spec,
    prefill_attention_spec,
    rms_norm,
    rope_and_cache,
    sample_spec,
    silu_mul,
)
from workbench.kernels.spec import KernelSpec

MODULES = (
    rms_norm,
    layer_norm,
    silu_mul,
    rope_and_cache,
    paged_decode_spec,
    prefill_attention_spec,
    gemv,
    lora_shrink,
    lora_expand,
    lora_gain,
    matmul,
    sample_spec,
)
SPECS: Mapping[str, KernelSpec] = MappingProxyType({m.SPEC.name: m.SPEC for m in MODULES})


def get_spec(name: str) -> KernelSpec:
    """Return the spec of a kernel; raise `ConfigError` for a name that is not in `SPECS`."""
    if name not in SPECS:
        raise ConfigError("kernel", name, "no such kernel", f"Known: {', '.join(SPECS)}.")
    return SPECS[name]
