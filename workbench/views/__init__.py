"""Views: what an engine does, drawn in a notebook, live or from a recorded trace.

Every view takes a `Trace`, an `Engine`, or is subscribed to a bus by hand. How to write one:
`workbench.views.base`. Needs the notebook extra; names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from workbench.errors import MissingExtra
from workbench.keywords import unknown_name

if TYPE_CHECKING:
    from workbench.views.base import View, link
    from workbench.views.batch_timeline import BatchTimeline
    from workbench.views.dashboard import EngineDashboard
    from workbench.views.kernel_playground import KernelPlayground
    from workbench.views.kv_cache import KVCacheView
    from workbench.views.lora_panel import LoRAPanel
    from workbench.views.speculation_tree import SpeculationTree
    from workbench.views.token_view import TokenView

_HOMES = {
    "BatchTimeline": "workbench.views.batch_timeline",
    "EngineDashboard": "workbench.views.dashboard",
    "KernelPlayground": "workbench.views.kernel_playground",
    "KVCacheView": "workbench.views.kv_cache",
    "LoRAPanel": "workbench.views.lora_panel",
    "SpeculationTree": "workbench.views.speculation_tree",
    "TokenView": "workbench.views.token_view",
    "View": "workbench.views.base",
    "link": "workbench.views.base",
}

__all__ = [
    "BatchTimeline",
    "EngineDashboard",
    "KVCacheView",
    "KernelPlayground",
    "LoRAPanel",
    "SpeculationTree",
    "TokenView",
    "View",
    "link",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise unknown_name("workbench.views", name, __all__)
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "workbench":
            raise
        raise MissingExtra(f"workbench.views.{name}", error.name, "notebook") from error


def __dir__() -> list[str]:
    return sorted({*__all__, "__all__", "__doc__", "__file__", "__path__"})
