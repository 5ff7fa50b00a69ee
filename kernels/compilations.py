"""`COMPILATIONS`: the kernels that Triton compiled in this process, and for how long each took.

A kernel is compiled when it is first launched with arguments of a new kind, so a step may wait for
a compiler long after the engine has started; `watch()` returns those from then on. What comes from
Triton's cache on disk is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from triton import knobs


class Compilation(NamedTuple):
    """A kernel that was compiled, and the seconds that it took."""

    kernel: str
    seconds: float


class Since(Sequence[Compilation]):
    """The compilations after the first few, as they come."""

    def __init__(self, made: list[Compilation], first: int) -> None:
        self._made, self._first = made, first

    def __len__(self) -> int:
        return len(self._made) - self._first

    def __getitem__(self, place: Any) -> Any:
        return self._made[self._first :][place]

    @property
    def summary(self) -> str:
        """How many, and how long they took, in a line."""
        return f"{len(self)} kernels in {sum(each.seconds for each in self):.2f} s"


class Compilations:
    """Listens to Triton's compiler from `watch()` on, beside whoever listened before."""

    def __init__(self) -> None:
        self.made: list[Compilation] = []
        self._before: Any = None

    def watch(self) -> Since:
        """Listen, unless it does already; return those from now on."""
        if knobs.compilation.listener != self._note:
            self._before = knobs.compilation.listener
            knobs.compilation.listener = self._note
        return Since(self.made, len(self.made))

    def _note(self, *, src: Any, times: Any, cache_hit: bool, **others: Any) -> None:
        if self._before is not None:
            self._before(src=src, times=times, cache_hit=cache_hit, **others)
        if not cache_hit:
            spent = times.ir_initialization + times.total_lowering + times.store_results
            self.made.append(Compilation(src.name, 1e-6 * spent))


COMPILATIONS = Compilations()
