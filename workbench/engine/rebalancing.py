"""`Shares`: an engine's device memory, as LoRA adapters and the KV cache have it between them.

What the plan gave to both when the engine was built is one budget: rank rows that are given up
become blocks, and the other way, while requests run. Called by `Engine.rebalance` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from workbench.cache import KVCache
from workbench.cache.blocks import BlockManager
from workbench.cache.resizing import require_resizable, resize
from workbench.engine.checks import check_unfinished
from workbench.engine.requests import RequestRecord
from workbench.errors import ConfigError
from workbench.events import EventBus, MemoryRebalanced
from workbench.interrupts import shielded
from workbench.lora import LoRAManager
from workbench.models import DecoderLM
from workbench.request import Status
from workbench.run import Runner
from workbench.scheduler import Scheduler


class HasParts(Protocol):
    """What an engine is made of."""

    model: DecoderLM
    cache: KVCache
    scheduler: Scheduler
    runner: Runner
    loras: LoRAManager
    bus: EventBus


class Balance(NamedTuple):
    """Rank rows for adapters, and blocks for keys and values."""

    lora_rows: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Shares:
    """What each had at first, in bytes of a row and of a block: all later balances add up to it."""

    first: Balance
    row_bytes: int
    block_bytes: int

    @classmethod
    def of(cls, engine: HasParts) -> Shares:
        """Return the shares of an engine as it is now."""
        cache, slots = engine.cache, engine.loras.slots
        first = Balance(slots.pool.num_rows, cache.num_blocks)
        num_bytes = cache.num_bytes + sum(one.num_bytes for one in cache.companions)
        return cls(first, slots.pool.packer.row_bytes(), num_bytes // cache.num_blocks)

    def num_blocks(self, lora_rows: int) -> int:
        """Return how many blocks there are beside so many rank rows; none or less if none fits."""
        given = (self.first.lora_rows - lora_rows) * self.row_bytes
        return self.first.num_blocks + given // self.block_bytes


class Rebalancer:
    """Moves the border between rank rows and blocks; remembers where it was at first.

    settle: called before, so that no pass is under way."""

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle
        self._shares: Shares | None = None  # what a row takes is asked when somebody wants to know

    def rebalance(
        self, engine: HasParts, records: Iterable[RequestRecord], lora_rows: int
    ) -> Balance:
        """Have so many rank rows, and as many blocks as the memory beside them holds, between two
        steps; tokens stay what they are.

        Sequences with blocks that go are preempted: they compute again, or swap in. Raises
        `ConfigError`, with nothing changed, for what unfinished requests or pinned adapters need.
        """
        self._settle()
        engine.loras.check_rows(lora_rows)
        require_resizable(engine.cache)
        self._shares = self._shares or Shares.of(engine)
        before, num_blocks = engine.cache.num_blocks, self._shares.num_blocks(lora_rows)
        _check_blocks(engine, records, lora_rows, num_blocks)
        with shielded():
            if num_blocks >= before:
                engine.loras.resize(lora_rows)
            _resize_cache(engine, num_blocks)
            if num_blocks < before:
                engine.loras.resize(lora_rows)
            if engine.bus:
                engine.bus.emit(MemoryRebalanced(engine.scheduler.step, lora_rows, num_blocks))
        return Balance(lora_rows, num_blocks)


def _check_blocks(
    engine: HasParts, records: Iterable[RequestRecord], lora_rows: int, num_blocks: int
) -> None:
    cache, asked = engine.cache, ("lora_rows", lora_rows)
    if num_blocks < 1:
        problem = f"leaves no block of the {cache.num_blocks} that there are"
        raise ConfigError(*asked, problem, "Ask for fewer.")
    then = BlockManager(num_blocks, cache.block_size, window=cache.groups[0].window)
    check_unfinished(records, engine.scheduler.config, then, engine.model, asked)


def _resize_cache(engine: HasParts, num_blocks: int) -> None:
    cache, blocks = engine.cache, engine.cache.blocks
    if num_blocks == cache.num_blocks:
        return
    engine.runner.forget_addresses()
    cache.settle()
    for sequence in (*engine.scheduler.running, *engine.scheduler.holding):
        table: Any = blocks.tables[sequence.sequence_id]
        if any(block >= num_blocks for block in table.block_ids):
            paused = sequence.status is Status.PAUSED
            engine.scheduler.pause(sequence, release=True)
            if not paused:
                engine.scheduler.resume(sequence)
    cache.run_transfers([])  # what was swapped out leaves before its block does
    resize(cache, num_blocks)
