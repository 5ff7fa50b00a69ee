"""`ModelWatch`: whether a model is still the one that a CUDA graph was captured from.

A graph replays kernels over the addresses it was captured with. So `graphs` asks here whether
anybody hooks into the modules, and whether modules, parameters and buffers are still the same
objects at the same addresses. Values changed in place are seen by a graph by itself. What this
cannot see: a changed Python attribute or a patched method (`graphs.clear()` then).
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import nn


class ModelWatch:
    """Watches the modules of a model.

    Their memory is kept alive until the next `renew`, so that a graph that is replayed once more
    before somebody asks reads old values, never another's memory.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.renew()

    def renew(self) -> None:
        """Take the model as it is now for what it should be."""
        modules = list(self.model.modules())
        self._hooks = hooks_of(self.model)
        self._children = [m._modules for m in modules if m._modules]
        held = (group for m in modules for group in (m._parameters, m._buffers))
        self._tensors = [group for group in held if group]
        self._seen = self._look()
        tensors = (t for group in self._tensors for t in group.values() if t is not None)
        self._kept = [tensor.untyped_storage() for tensor in tensors]

    @property
    def hooked(self) -> bool:
        """Whether a forward hook (a probe) sits on any module."""
        return any(self._hooks)

    @property
    def changed(self) -> bool:
        """Whether a module was replaced, or the memory of a weight, since `renew`."""
        return self._seen != self._look()

    def _look(self) -> tuple[list[Any], list[int]]:
        modules = list(chain.from_iterable(children.values() for children in self._children))
        addresses = [
            0 if tensor is None else tensor.data_ptr()
            for group in self._tensors
            for tensor in group.values()
        ]
        return modules, addresses


def hooks_of(model: nn.Module) -> tuple[Any, ...]:
    """Return where the modules of a model keep their forward hooks: empty if nobody looks in."""
    modules = model.modules()
    return tuple(hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks))
