"""LoRA adapters: many over one model, each request through its own, at little cost.

`LoRAManager` is the face; `read_adapter`, `Adapter.to_peft` and `merge` work without an engine.
"""

from workbench.lora.adapter import Adapter, LoRAPair
from workbench.lora.batches import AdapterBatches, ReplayedAdapters
from workbench.lora.config import LoRAConfig, read_config
from workbench.lora.info import AdapterInfo
from workbench.lora.manager import LoRAManager
from workbench.lora.merge import merge
from workbench.lora.reader import read_adapter
from workbench.lora.targets import Target, targets_of

__all__ = [
    "Adapter",
    "AdapterBatches",
    "AdapterInfo",
    "LoRAConfig",
    "LoRAManager",
    "LoRAPair",
    "ReplayedAdapters",
    "Target",
    "merge",
    "read_adapter",
    "read_config",
    "targets_of",
]
