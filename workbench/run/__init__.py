"""From a plan to logits: `inputs` makes tensors of it, `Runner` runs the model over them.

Batches of decodes are replayed where device and backend allow it: from CUDA graphs (`graphs`), or
on a CPU from a tape (`tapes`).
"""

from workbench.run.graphs import DecodeGraphs
from workbench.run.inputs import InputBuilder, StepInputs
from workbench.run.runner import Runner
from workbench.run.tapes import DecodeTapes

__all__ = ["DecodeGraphs", "DecodeTapes", "InputBuilder", "Runner", "StepInputs"]
