"""Recording what an engine states about itself, to look at later or elsewhere."""

from workbench.trace.trace import Trace, TracedEvent

__all__ = ["Trace", "TracedEvent"]
