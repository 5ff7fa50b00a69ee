"""From a plan to logits: `inputs` makes tensors of it, `Runner` runs the model over them.

Batches of decodes are replayed from CUDA graphs (`graphs`) where device and backend allow it.
"""

from workbench.run.graphs import DecodeGraphs
from workbench.run.inputs import InputBuilder, StepInputs
from workbench.run.runner import Runner

__all__ = ["DecodeGraphs", "InputBuilder", "Runner", "StepInputs"]
