"""Which dtype a model is loaded in: names, and the choice that `auto` stands for.

Called by `load_model`. What a checkpoint states is kept where the processor multiplies in it; a CPU
without bfloat16 instructions gets float32, which was measured faster there (see DECISIONS.md).
"""

from __future__ import annotations

import torch

from workbench.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Names of `torch.cpu.get_capabilities`: any one of them multiplies bfloat16 in hardware.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def named_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """Return the dtype of that name, None for `auto`; raise `ConfigError` for another."""
    if dtype == "auto":
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        known = f"Known: auto, {', '.join(DTYPES)}."
        raise ConfigError("dtype", str(dtype), "not a dtype that models run in", known)
    return DTYPES[name]


def auto_dtype(stated: str, device: torch.device) -> torch.dtype:
    """Return what `auto` is for a checkpoint that states a dtype, on a device."""
    wanted = named_dtype(stated) or torch.float32
    if device.type != "cpu":
        return wanted
    return wanted if wanted is torch.bfloat16 and cpu_has_bf16() else torch.float32


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 products."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in _BF16_INSTRUCTIONS)
