"""What an engine says of itself: its parts, its queues, and how its loops run.

Called by `Engine.describe`.
"""

from __future__ import annotations

from typing import Any, Protocol

from workbench.cache import KVCache
from workbench.engine.overlap import Overlap
from workbench.engine.speculator import Speculator
from workbench.models import DecoderLM
from workbench.run import Runner
from workbench.scheduler import Scheduler


class Parts(Protocol):
    """What an engine is made of, as far as it is described."""

    model: DecoderLM
    cache: KVCache
    scheduler: Scheduler
    runner: Runner
    speculator: Speculator
    overlap: Overlap


def describe(engine: Parts) -> dict[str, Any]:
    """Return the parts and the queues."""
    scheduler, blocks = engine.scheduler, engine.cache.blocks
    return {
        "model": engine.model.config.architecture,
        "step": scheduler.step,
        **{name: len(getattr(scheduler, name)) for name in ("waiting", "running", "paused")},
        "blocks used": f"{blocks.num_used}/{engine.cache.num_blocks}",
        "backend": engine.runner.backend.name,
        "device": engine.runner.device,
        "overlap": engine.overlap.summary,
        **engine.speculator.describe(),
    }
