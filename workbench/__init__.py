"""The workbench: an LLM inference engine that can be opened up.

    import workbench as wb
    wb.LLM("tinypy").generate(["def fib(n):"], wb.SamplingParams(max_tokens=64, temperature=0))

Names are imported on first use, so that `import workbench` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from workbench.keywords import unknown_name

if TYPE_CHECKING:
    from workbench import debug, speculation, views
    from workbench.async_engine import AsyncEngine
    from workbench.batch import ForwardContext, StepPlan
    from workbench.build import build
    from workbench.cache import BlockManager, KVCache
    from workbench.config import EngineConfig, ModelConfig, SchedulerConfig
    from workbench.engine import Engine, StepRecord
    from workbench.events import EventBus
    from workbench.guided import GrammarCompiler, Guide
    from workbench.guided_params import GuidedDecodingParams
    from workbench.llm import LLM
    from workbench.lora import LoRAManager
    from workbench.memory_plan import MemoryPlan, plan_memory
    from workbench.models import DecoderLM, load_model
    from workbench.ops import get_backend
    from workbench.request import RequestOutput
    from workbench.retention import Retention
    from workbench.run import Runner
    from workbench.sample import Sampler
    from workbench.sampling_params import SamplingParams
    from workbench.scheduler import Scheduler
    from workbench.trace import Trace
    from workbench.trace.compare import compare

__version__ = "0.1.0"

_HOMES = {
    "workbench.async_engine": ("AsyncEngine",),
    "workbench.batch": ("ForwardContext", "StepPlan"),
    "workbench.build": ("build",),
    "workbench.cache": ("BlockManager", "KVCache"),
    "workbench.config": ("EngineConfig", "ModelConfig", "SchedulerConfig"),
    "workbench.engine": ("Engine", "StepRecord"),
    "workbench.events": ("EventBus",),
    "workbench.guided": ("GrammarCompiler", "Guide"),
    "workbench.guided_params": ("GuidedDecodingParams",),
    "workbench.llm": ("LLM",),
    "workbench.lora": ("LoRAManager",),
    "workbench.memory_plan": ("MemoryPlan", "plan_memory"),
    "workbench.models": ("DecoderLM", "load_model"),
    "workbench.ops": ("get_backend",),
    "workbench.request": ("RequestOutput",),
    "workbench.retention": ("Retention",),
    "workbench.run": ("Runner",),
    "workbench.sample": ("Sampler",),
    "workbench.sampling_params": ("SamplingParams",),
    "workbench.scheduler": ("Scheduler",),
    "workbench.trace": ("Trace",),
    "workbench.trace.compare": ("compare",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "LLM",
    "AsyncEngine",
    "BlockManager",
    "DecoderLM",
    "Engine",
    "EngineConfig",
    "EventBus",
    "ForwardContext",
    "GrammarCompiler",
    "Guide",
    "GuidedDecodingParams",
    "KVCache",
    "LoRAManager",
    "MemoryPlan",
    "ModelConfig",
    "RequestOutput",
    "Retention",
    "Runner",
    "Sampler",
    "SamplingParams",
    "Scheduler",
    "SchedulerConfig",
    "StepPlan",
    "StepRecord",
    "Trace",
    "build",
    "compare",
    "debug",
    "get_backend",
    "load_model",
    "plan_memory",
    "speculation",
    "views",
]


# Packages that are reached through the face, without an import of their own.
_PACKAGES = frozenset(
    (
        *("cache", "data", "debug", "errors", "events", "guided", "kernels", "layers", "lora"),
        *("models", "ops", "playground", "run", "sample", "scheduler", "speculation", "trace"),
        *("train", "views"),
    )
)


class _Face(ModuleType):
    """Keeps `build` the function: an import of `workbench.build` would set the module there."""

    def __setattr__(self, name: str, value: Any) -> None:
        is_module = name == "build" and isinstance(value, ModuleType)
        super().__setattr__(name, value.build if is_module else value)


sys.modules[__name__].__class__ = _Face


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"workbench.{name}")
    if name not in _HOME_OF:
        raise unknown_name("workbench", name, __dir__())
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES, "__doc__", "__file__", "__path__", "__version__"})


def load_ipython_extension(shell: Any) -> None:
    """Give a notebook the `%%kernel` magic: `%load_ext workbench`."""
    from workbench.playground.magics import register

    register(shell)
