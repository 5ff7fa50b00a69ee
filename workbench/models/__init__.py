"""Model families, and what turns a checkpoint folder into a model.

`load_model` is the way in. A family is one file: the config reader, the layers put together, and
the map from a checkpoint's tensor names to ours; `registry.FAMILIES` lists them.
"""

from workbench.models.base import DecoderLM
from workbench.models.llama import LlamaForCausalLM
from workbench.models.loader import load_model
from workbench.models.registry import FAMILIES
from workbench.models.resolve import resolve_model

__all__ = ["FAMILIES", "DecoderLM", "LlamaForCausalLM", "load_model", "resolve_model"]
