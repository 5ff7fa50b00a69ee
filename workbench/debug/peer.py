"""What a transformers model computes for one sequence, operation by operation.

Its modules are found by the names that the Llama family has there; queries and keys are turned by
the angles that its own rotary embedding gives out. Nothing is imported: any module tree with these
names will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from workbench.debug.forward import Outputs, plain
from workbench.debug.points import HEAD_OPS, Point
from workbench.errors import ConfigError
from workbench.ops.reference import rotate


class _Source(NamedTuple):
    """Where an operation's output is seen: what a module gives out, or is given."""

    module: str
    side: Literal["in", "out"]


_MODEL = {
    "embedding": _Source("model.embed_tokens", "out"),
    "norm": _Source("model.norm", "out"),
    "head": _Source("lm_head", "out"),
}
_LAYER = {
    "attention_norm": _Source("input_layernorm", "out"),
    "q_proj": _Source("self_attn.q_proj", "out"),
    "k_proj": _Source("self_attn.k_proj", "out"),
    "v_proj": _Source("self_attn.v_proj", "out"),
    "attention": _Source("self_attn.o_proj", "in"),
    "o_proj": _Source("self_attn.o_proj", "out"),
    "attention_residual": _Source("post_attention_layernorm", "in"),
    "mlp_norm": _Source("post_attention_layernorm", "out"),
    "gate_proj": _Source("mlp.gate_proj", "out"),
    "up_proj": _Source("mlp.up_proj", "out"),
    "activation": _Source("mlp.down_proj", "in"),
    "down_proj": _Source("mlp.down_proj", "out"),
    "mlp_residual": _Source("", "out"),
}
_ANGLES = "model.rotary_emb"


@torch.no_grad()
def record_peer(peer: nn.Module, token_ids: list[int]) -> Outputs:
    """Return what each operation puts out for a sequence, [T, …] float32 on the CPU.

    Raises `ConfigError` for a module tree of other names.
    """
    modules: dict[str, nn.Module] = dict(peer.named_modules())
    wanted = list(_wanted(modules))
    missing = [name for _, name, _ in wanted if name not in modules]
    if missing or not any(point.layer is not None for point, _, _ in wanted):
        first = missing[0] if missing else "model.layers.0"
        fix = "Pass a Llama, Mistral or Qwen2 model of transformers, or a `DecoderLM`."
        raise ConfigError("reference", type(peer).__name__, f"has no module {first!r}", fix)
    seen: Outputs = {}
    angles: list[tuple[Tensor, Tensor]] = []
    with _hooks(modules, wanted, seen, angles):
        peer(torch.tensor([token_ids], device=next(peer.parameters()).device), use_cache=False)
    _turn(peer, seen, angles)
    return seen


def _wanted(modules: dict[str, nn.Module]) -> Iterator[tuple[Point, str, Literal["in", "out"]]]:
    for op, (name, side) in _MODEL.items():
        yield Point(None, op), name, side
    layer = 0
    while f"model.layers.{layer}" in modules:
        for op, (name, side) in _LAYER.items():
            yield Point(layer, op), f"model.layers.{layer}.{name}".rstrip("."), side
        layer += 1


@contextmanager
def _hooks(
    modules: dict[str, nn.Module],
    wanted: list[tuple[Point, str, Literal["in", "out"]]],
    seen: Outputs,
    angles: list[tuple[Tensor, Tensor]],
) -> Iterator[None]:
    def note(point: Point, value: Any) -> None:
        seen[point] = plain((value[0] if isinstance(value, tuple) else value)[0])  # the one row

    handles = []
    try:
        for point, name, side in wanted:
            module = modules[name]
            if side == "in":
                handles.append(
                    module.register_forward_pre_hook(lambda _, args, p=point: note(p, args[0]))
                )
            else:
                handles.append(
                    module.register_forward_hook(lambda _, __, out, p=point: note(p, out))
                )
        rotary = modules.get(_ANGLES)
        if rotary is not None:
            handles.append(rotary.register_forward_hook(lambda _, __, out: angles.append(out)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _turn(peer: Any, seen: Outputs, angles: list[tuple[Tensor, Tensor]]) -> None:
    """Give heads their own dimension, and add queries and keys as the angles turn them."""
    config = peer.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for point in list(seen):
        if point.op in HEAD_OPS:
            seen[point] = seen[point].view(len(seen[point]), -1, size)
    if not angles:
        return
    cos, sin = (plain(part[0])[:, : size // 2] for part in angles[0])  # halves are equal there
    for point in list(seen):
        if point.op in ("q_proj", "k_proj"):
            turned = Point(point.layer, point.op.replace("proj", "rope"))
            seen[turned] = rotate(seen[point], cos, sin)
