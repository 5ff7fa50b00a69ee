"""What a model's shape asks of the kernels, held to their limits before anything runs.

Called by the Triton backends when a runner is made, so that a head size or a block size that a
kernel does not take is told then, and not in the first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workbench.config import ModelConfig
from workbench.errors import ConfigError

if TYPE_CHECKING:
    from workbench.kernels.spec import KernelSpec


def check_model(kernels: Mapping[str, KernelSpec], model: ModelConfig, block_size: int) -> None:
    """Raise `ConfigError` for the first quantity of a model that lies outside a kernel's limits."""
    attention = {
        "head_dim": model.head_dim,
        "group": model.num_heads // model.num_kv_heads,
        "block_size": block_size,
    }
    asked = {
        "paged_decode": attention,
        "prefill_attention": attention,
        "rope_and_cache": {"head_dim": model.head_dim},
        "rms_norm": {"width": model.hidden_size},
        "silu_mul": {"width": model.intermediate_size},
        "sample": {"vocab_size": model.vocab_size},
    }
    for kernel, quantities in asked.items():
        for name, (least, most) in kernels[kernel].limits.items():
            value = quantities.get(name, least)
            if not least <= value <= most:
                fix = 'Use backend="sdpa".'
                if name == "block_size":
                    fix = f'Use a block_size of {least} to {most}, or backend="sdpa".'
                problem = f"the kernel takes {least} to {most}"
                raise ConfigError(f"{kernel}.{name}", value, problem, fix)
