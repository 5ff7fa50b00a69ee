"""Replacing an engine's parts between two steps.

Names are looked up, and what cannot be used here is refused, before anything is replaced. Called by
`Engine.swap` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from workbench.cache import DroppingPolicy, EvictionPolicy, KVCache, get_dropping, get_eviction
from workbench.engine.overlap import Overlap
from workbench.errors import ConfigError
from workbench.run import Runner
from workbench.sample import Sampler
from workbench.scheduler import Policy, Scheduler, check_droppable, get_policy

if TYPE_CHECKING:
    from workbench.batch import Backend
    from workbench.kernels.spec import KernelSpec


class HasParts(Protocol):
    """What an engine is made of."""

    cache: KVCache
    scheduler: Scheduler
    runner: Runner
    sampler: Sampler
    overlap: Overlap


def replacing(
    engine: HasParts,
    scheduler_policy: str | Policy | None,
    sampler: Sampler | None,
    backend: str | Backend | None,
    eviction: str | EvictionPolicy | None,
    dropping: str | DroppingPolicy | None,
    kernel: str | KernelSpec | None,
) -> Callable[[], None]:
    """Return what puts these parts in (None: the old one stays); raise `ConfigError` for what is
    unknown or cannot be used here."""
    policy = None if scheduler_policy is None else get_policy(scheduler_policy)
    new_backend = None if backend is None else engine.runner.backend_named(backend)
    kernels_of = new_backend or engine.runner.backend
    new_kernel = None if kernel is None else engine.runner.kernel_named(kernel, kernels_of)
    new_eviction = None if eviction is None else get_eviction(eviction)
    new_dropping = None if dropping is None else get_dropping(dropping)
    if new_dropping is not None:
        check_droppable(engine.cache.blocks, new_dropping)
    if sampler is not None and not callable(sampler):
        raise ConfigError("sampler", sampler, "is not callable", "Pass a `Sampler`.")

    def put_in() -> None:
        if policy is not None:
            engine.scheduler.policy = policy
        if new_dropping is not None:
            engine.scheduler.dropping = new_dropping
        if new_eviction is not None:
            engine.cache.eviction = new_eviction
        engine.sampler = sampler or engine.sampler
        engine.runner.backend = new_backend or engine.runner.backend
        if new_kernel is not None:
            engine.overlap.drop()  # a pass that the old one has run
            engine.runner.replace_kernel(new_kernel)

    return put_in
