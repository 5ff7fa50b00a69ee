"""Which batch sizes CUDA graphs are captured for: the ladders, and what a user asks for.

Read by `graphs`; `resolve_sizes` is called when a runner is made, and before one is.
"""

from __future__ import annotations

import torch

from workbench.batch import Backend
from workbench.errors import ConfigError

# Finer steps pad less and capture more often: a decode's time grows little between two of these.
LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
# Of the tokens of a batch with drafts. A larger one computes so long that launching it is hidden.
TOKENS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def resolve_sizes(
    cuda_graphs: object, device: torch.device, backend: Backend
) -> tuple[int, ...] | None:
    """Return the batch sizes to capture, or None for none at all.

    cuda_graphs: `"auto"` (where they can be used), True, False, or batch sizes. Raises
    `ConfigError` for anything else, and for True or sizes where graphs cannot be used.
    """
    if cuda_graphs is False:
        return None
    if cuda_graphs == "auto":
        return LADDER if device.type == "cuda" else None
    sizes = LADDER if cuda_graphs is True else cuda_graphs
    if (
        not isinstance(sizes, tuple | list | range)
        or not sizes
        or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in sizes)
    ):
        fix = 'Use "auto", True, False, or a list of batch sizes such as [1, 2, 4, 8].'
        raise ConfigError("cuda_graphs", cuda_graphs, "is no choice of batch sizes", fix)
    problem = None
    if device.type != "cuda":
        problem, fix = f"the device is {device}", 'Leave it at "auto", or use a CUDA GPU.'
    elif not backend.capturable:
        problem = f"the {backend.name} backend cannot be captured"
        fix = 'Use backend="triton", or leave cuda_graphs at "auto".'
    if problem is not None:
        raise ConfigError("cuda_graphs", cuda_graphs, problem, fix)
    return tuple(sorted(set(sizes)))
