"""From a plan to logits: `inputs` makes tensors of it, `Runner` runs the model over them."""

from workbench.run.inputs import InputBuilder, StepInputs
from workbench.run.runner import Runner

__all__ = ["InputBuilder", "Runner", "StepInputs"]
