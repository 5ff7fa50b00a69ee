"""A scheduler over a cache without tensors, and the shadow model that checks every slot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from shadow import ShadowModel

from workbench.batch import StepPlan
from workbench.cache import KVCache
from workbench.config import SchedulerConfig
from workbench.results import SampledTokens
from workbench.scheduler import Scheduler

Made = tuple[Scheduler, ShadowModel]
Step = Callable[[Scheduler, ShadowModel], StepPlan]


@pytest.fixture
def make() -> Callable[..., Made]:
    """Build both. Keywords: sizes of the cache, and settings of the scheduler."""

    def make(
        num_blocks: int = 16,
        block_size: int = 4,
        host_blocks: int = 0,
        windows: tuple[int | None, ...] = (),
        **settings: object,
    ) -> Made:
        cache = KVCache(
            num_layers=len(windows),
            num_kv_heads=1,
            head_dim=1,
            num_blocks=num_blocks,
            block_size=block_size,
            num_host_blocks=host_blocks,
            windows=windows,
        )
        scheduler = Scheduler(cache, SchedulerConfig(**{"max_sequences": 8, **settings}))
        cache.blocks.bus = scheduler.bus
        return scheduler, ShadowModel(cache.blocks)

    return make


@pytest.fixture
def step() -> Step:
    """Plan, run and commit a step, and check the cache."""

    def step(scheduler: Scheduler, model: ShadowModel) -> StepPlan:
        plan = scheduler.schedule()
        scheduler.commit(plan, model.run(plan) if plan else SampledTokens([]))
        scheduler.blocks.check()
        return plan

    return step


@pytest.fixture
def drain(step: Step) -> Callable[[Scheduler, ShadowModel], None]:
    """Step until nothing is left; nothing may be held then, on the device or the host."""

    def drain(scheduler: Scheduler, model: ShadowModel) -> None:
        for _ in range(500):
            if not scheduler.num_unfinished:
                break
            step(scheduler, model)
        assert scheduler.num_unfinished == 0
        assert scheduler.blocks.num_used == 0
        host = scheduler.blocks.host
        assert host is None or host.num_free == host.num_slots

    return drain
