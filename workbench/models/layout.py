"""Where a matrix lies in memory, chosen for the device that multiplies by it.

On a CPU, torch's float32 product of a few rows with a row-major weight [out, in] falls off a cliff
between 4 and 64 rows; the same weight stored column-major runs 2.3 times as fast at 16 rows and no
slower at 1 or 256 (measured, see DECISIONS.md). Called by `load_model`; shapes and values stay.
"""

from __future__ import annotations

import torch

from workbench.layers import Linear
from workbench.models.base import DecoderLM


@torch.no_grad()
def arrange_for_cpu(model: DecoderLM) -> None:
    """Store every linear weight column-major, in place, but for a head tied to the embedding.

    The embedding is read by row, so a shared table stays as it is. `weight.shape` is unchanged.
    """
    shared = model.embedding.weight
    for module in model.modules():
        if isinstance(module, Linear) and module.weight is not shared:
            module.weight.data = module.weight.data.t().contiguous().t()
