"""`KernelSet`: the kernels that one backend runs, by name, and who asks for them.

A backend looks a kernel up each time it needs one, so a replaced one is met by the next pass. A
captured pass looks nothing up when it is replayed: what it asked for is noted while it is captured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from workbench.errors import ConfigError

if TYPE_CHECKING:
    from workbench.kernels.spec import Inputs, KernelSpec


class KernelSet(Mapping[str, "KernelSpec"]):
    """The shipped kernels until one is replaced; `replaced` names those that were."""

    def __init__(self, shipped: Mapping[str, KernelSpec]) -> None:
        self._shipped, self._now = shipped, dict(shipped)
        self._noted: set[str] = set()
        self.replaced: set[str] = set()

    def __getitem__(self, name: str) -> KernelSpec:
        """Return the kernel of a name, and note that it was asked for."""
        self._noted.add(name)
        return self._now[name]

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self._now)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._now)

    @contextmanager
    def noting(self) -> Iterator[set[str]]:
        """Give a set that has, at the block's end, the names that were asked for in it."""
        before, self._noted = self._noted, set()
        try:
            yield self._noted
        finally:
            before |= self._noted
            self._noted = before

    def named(self, kernel: str | KernelSpec) -> KernelSpec:
        """Return a spec that has a place here, or the shipped one of that name.

        Raises `ConfigError` for what is neither, or of no known name.
        """
        name = kernel if isinstance(kernel, str) else getattr(kernel, "name", None)
        if name not in self._now:
            known = f"Known: {', '.join(self._now)}."
            raise ConfigError("kernel", kernel, "no such kernel, nor a KernelSpec of one", known)
        return self._shipped[name] if isinstance(kernel, str) else kernel

    def replace(self, spec: KernelSpec) -> None:
        """Put a kernel in the place of the one of its name."""
        self._now[spec.name] = spec
        if spec is self._shipped[spec.name]:
            self.replaced.discard(spec.name)
        else:
            self.replaced.add(spec.name)


def shapes_of(inputs: Inputs) -> str:
    """Return a kernel's tensors with dtypes and shapes, in a line."""
    tensors = {name: x for name, x in inputs.items() if isinstance(x, Tensor)}
    return ", ".join(
        f"{name} {str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
        for name, x in tensors.items()
    )
