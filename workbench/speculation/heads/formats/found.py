"""`Found`: what a head's folder holds, for the readers: config, tensor headers, and the target.

Readers rename tensors to the raw layout and take aside what is no parameter; whatever is left must
fit the head's parameters exactly. Problems of a tensor are collected, as for a model's checkpoint;
a config that cannot work with this target is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.errors import ConfigError
from workbench.models.base import DecoderLM
from workbench.models.checkpoint import Checkpoint
from workbench.models.weights import TensorInfo


@dataclass(slots=True)
class Found:
    """A folder's `config` and `tensors` by name; `names` maps them to the checkpoint's own.

    notes: what a reader decided where config and tensors say different things.
    """

    config: Mapping[str, Any]
    checkpoint: Checkpoint
    target: DecoderLM
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start with the checkpoint's own names."""
        self.tensors = dict(self.checkpoint.tensors)
        self.names = {name: name for name in self.tensors}

    def rename(self, old: str, new: str) -> None:
        """Call every tensor whose name begins with `old` by `new` instead."""
        for name in [name for name in self.tensors if name.startswith(old)]:
            renamed = new + name.removeprefix(old)
            self.tensors[renamed] = self.tensors.pop(name)
            self.names[renamed] = self.names.pop(name)

    def keep_only(self, *prefixes: str) -> None:
        """Forget every tensor that begins otherwise (a base model's, in the same files)."""
        for name in [name for name in self.tensors if not name.startswith(prefixes)]:
            del self.tensors[name], self.names[name]

    def read(self, name: str) -> Tensor:
        """Return a tensor as it is stored, on the CPU."""
        return self.checkpoint.read(self.names[name])

    def take(self, name: str) -> Tensor | None:
        """Return a tensor and set it aside; None if there is none."""
        if name not in self.tensors:
            return None
        tensor = self.read(name)
        del self.tensors[name], self.names[name]
        return tensor

    def same(self, name: str, weight: Tensor) -> bool:
        """Whether a tensor equals a weight of the target's, both rounded to bfloat16."""
        if self.tensors[name].shape != tuple(weight.shape):
            return False
        stored = self.read(name).to(torch.bfloat16)
        return torch.equal(stored, weight.detach().cpu().to(torch.bfloat16))

    def drop_copy(self, name: str, weight: Tensor, of: str) -> None:
        """Set aside a tensor that repeats a weight of the target's; note one that differs."""
        if name in self.tensors:
            if not self.same(name, weight):
                file = self.tensors[name].file
                self.problems.append(f"tensor {name} in {file} differs from the target's {of}")
            del self.tensors[name], self.names[name]

    def owns_embedding(self) -> bool:
        """Whether `embed_tokens.weight` is there and is not the target's; set aside if it is."""
        name, weight = "embed_tokens.weight", self.target.embedding.weight
        if name not in self.tensors:
            return False
        if self.same(name, weight):
            del self.tensors[name], self.names[name]
            return False
        return True

    def file(self, name: str) -> str:
        """Return the file a tensor lies in, with the folder."""
        return f"{self.checkpoint.folder / self.tensors[name].file}"

    def require(self, key: str, value: Any, expected: Any, what: str) -> None:
        """Raise `ConfigError` unless a config value is what the target has."""
        if value != expected:
            field_name = f"{self.checkpoint.folder / 'config.json'}: {key}"
            problem = f"the target's {what} is {expected}"
            raise ConfigError(
                field_name, value, problem, "Load it beside the model it was made for."
            )

    def require_width(self, name: str, dim: int, expected: int, what: str) -> None:
        """Raise `ConfigError` unless a tensor, if there, has the target's size in a dimension."""
        if name in self.tensors and self.tensors[name].shape[dim] != expected:
            shape = list(self.tensors[name].shape)
            problem = f"the target's {what} is {expected}"
            fix = "Load it beside the model it was made for."
            raise ConfigError(f"{self.file(name)}: {name}", shape, problem, fix)

    def refuse(self, key: str, value: Any, problem: str, fix: str) -> ConfigError:
        """Return an error for a config value that cannot run here."""
        return ConfigError(f"{self.checkpoint.folder / 'config.json'}: {key}", value, problem, fix)
