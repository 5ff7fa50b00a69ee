"""Read or change activations at named points of a model, for as long as a `with` block lasts.

Built on forward hooks; whatever happens inside the block, the model leaves it as it came. Points
are module names (`layers.3.attention`, `embedding`, `head`); a decoder layer stands for the
residual stream after it. Works on a bare model and on a live engine alike, between any two steps:

    with probe(engine.model, {"layers.3": lambda stream: stream + direction}):
        engine.step()

There a tensor holds the packed batch, a row per token of `plan`'s rows in turn; `head` sees only
the rows whose logits are asked for. Modules are called whatever backend multiplies for them, also
with packed or replaced weights; while a probe is on, the engine replays no CUDA graph.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import ConfigError
from workbench.layers.block import DecoderLayer

ProbeFunction = Callable[[Tensor], Tensor | None]


@contextmanager
def probe(
    model: nn.Module, points: Mapping[str, ProbeFunction | None] | Iterable[str]
) -> Iterator[dict[str, Tensor]]:
    """Call each point's function with its activation in every forward pass of the block.

    points: {name: function}, or just names to read. A function gets the live tensor ([T, hidden]
    for most points) and may return a replacement of the same shape; None leaves it. Yields a dict
    that holds, per point, a copy of what the latest pass computed there, before any replacement:
    an ordinary tensor even where the engine runs in inference mode, so that one can train on it.
    "" is the model itself, whose output are the hidden states after the final norm.

    Raises `ConfigError` for a name that is no module of the model, or a replacement of another
    shape.
    """
    functions = dict(points) if isinstance(points, Mapping) else dict.fromkeys(points)
    modules = {name: _find(model, name) for name in functions}
    captured: dict[str, Tensor] = {}
    handles = []
    try:
        for name, function in functions.items():
            hook = _hook(name, function, captured)
            handles.append(modules[name].register_forward_hook(hook))
        yield captured
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def holding(model: nn.Module, points: Iterable[str]) -> Iterator[dict[str, Callable[[], Tensor]]]:
    """Hold on to what points return in the block, and compute nothing: for a pass that is recorded.

    Yields a dict with a function per point: a copy of what lies there when it is called. The memory
    stays theirs as long as the dict does. Raises `ConfigError` for a name that is no module.
    """
    modules = {name: _find(model, name) for name in points}
    held: dict[str, Callable[[], Tensor]] = {}
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(_holder(name, held)))
        yield held
    finally:
        for handle in handles:
            handle.remove()


def _holder(
    name: str, held: dict[str, Callable[[], Tensor]]
) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, _: Any, output: Any) -> None:
        held[name] = lambda: _copy(_activation(module, output))

    return hook


def _copy(value: Tensor) -> Tensor:
    with torch.inference_mode(False):
        return value.detach().clone()  # a later operation may reuse the memory


def _find(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=3) or list(modules)[1:4]
        raise ConfigError("probe.points", name, "no such point", f"Did you mean {near}?")
    return modules[name]


def _hook(
    name: str, function: ProbeFunction | None, captured: dict[str, Tensor]
) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, _: Any, output: Any) -> Any:
        value = _activation(module, output)
        captured[name] = _copy(value)
        new = None if function is None else function(value)
        if new is None:
            return output
        if new.shape != value.shape:
            shapes = f"{tuple(new.shape)} for {tuple(value.shape)}"
            raise ConfigError(f"probe.{name}", shapes, "wrong shape", "Return the point's shape.")
        return _replaced(module, output, new)

    return hook


def _activation(module: nn.Module, output: Any) -> Tensor:
    if isinstance(module, DecoderLayer):
        x, residual = output
        stream: Tensor = x + residual
        return stream
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value


def _replaced(module: nn.Module, output: Any, new: Tensor) -> Any:
    if isinstance(module, DecoderLayer):
        return new, new.new_zeros(new.shape)  # their sum is the stream, exactly
    return (new, *output[1:]) if isinstance(output, tuple) else new
