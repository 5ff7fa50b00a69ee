"""Which batch sizes CUDA graphs are captured for: the ladders, and what a user asks for.

Used by `workbench.run.graphs`, which pads every batch to one of these sizes, and asks `Comings` for
which of the many mixed ones a graph pays; `resolve_sizes` is called when a runner is made, and
before one is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import NamedTuple

import torch

from workbench.batch import Backend, StepPlan
from workbench.cache import KVCache
from workbench.errors import ConfigError
from workbench.run.trees import num_words

# Finer steps pad less and capture more often: a decode's time grows little between two of these.
LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
# Of the tokens of a batch with drafts. A larger one computes so long that launching it is hidden.
TOKENS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# Of prompts beside decodes, rows and tokens; longer ones keep the GPU busy for longer than the host
# takes to launch their pass.
CHUNK_ROWS = (4, 16)
CHUNK_TOKENS = (16, 32, 64, 96, 128, 192, 256, 384, 512)
_MIN_MIXED = 8  # decodes beside prompts: fewer share a graph
_MIN_WIDTH = 64  # blocks of a table: narrower ones share a graph


_OFTEN, _LATELY = 3, 64  # a mixed size is captured when it comes so often in so many passes


class Size(NamedTuple):
    """What a batch is padded to.

    rows: of decodes, and of those with drafts. width: blocks of a table. tokens: of these rows.
    words: how wide masks of drafts are; -1 where there are no drafts. chunk_rows, chunk_tokens:
    what there is room for behind the decodes.
    """

    rows: int
    width: int
    tokens: int
    words: int = -1
    chunk_rows: int = 0
    chunk_tokens: int = 0


def padded_size(plan: StepPlan, cache: KVCache, sizes: tuple[int, ...]) -> Size:
    """Return the size that a plan is padded to; `sizes`: batch sizes, rising."""
    tables = cache.blocks.groups[0].tables
    blocks = max(len(tables[sequence.sequence_id].block_ids) for sequence in plan.sequences)
    width = max(_MIN_WIDTH, 1 << (blocks - 1).bit_length())
    if num_chunks := num_prompts(plan):
        # Each number of decodes comes with many sizes of prompts: they are powers of two.
        rows = max(_MIN_MIXED, 1 << (plan.num_decodes - 1).bit_length())
        chunk_rows = CHUNK_ROWS[bisect_left(CHUNK_ROWS, num_chunks)]
        num_tokens = plan.num_tokens - plan.num_decodes
        chunk_tokens = CHUNK_TOKENS[bisect_left(CHUNK_TOKENS, num_tokens)]
        return Size(rows, width, rows, chunk_rows=chunk_rows, chunk_tokens=chunk_tokens)
    rows = sizes[bisect_left(sizes, len(plan.sequences))]
    if not plan.drafts:
        return Size(rows, width, rows)
    tokens = TOKENS[bisect_left(TOKENS, max(plan.num_tokens, rows))]
    return Size(rows, width, tokens, num_words(plan))


class Comings:
    """Tells which mixed sizes come often enough for a graph to pay.

    One saves some 10 ms of launches, and takes 0.1 s to capture, 1 s where kernels are compiled for
    it. What comes once a run, as the end of its last prompt does, would be captured in the third.
    """

    def __init__(self) -> None:
        self._passes = 0
        self._latest: dict[Size, deque[int]] = {}

    def begin_pass(self) -> None:
        """Count a pass, of any size."""
        self._passes += 1

    def often(self, size: Size) -> bool:
        """Whether a size, which comes in this pass, has come often of late."""
        latest = self._latest.setdefault(size, deque(maxlen=_OFTEN))
        latest.append(self._passes)
        return len(latest) == _OFTEN and latest[-1] - latest[0] < _LATELY

    def clear(self) -> None:
        """Forget all sizes."""
        self._latest.clear()


def num_prompts(plan: StepPlan) -> int:
    """Return how many rows neither decode nor verify a draft."""
    return len(plan.sequences) - plan.num_decodes - len(plan.drafts)


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
