"""`Adapter`: a LoRA adapter in host memory, as its files hold it, and back into files.

Plain data, checked when it was read (`workbench.lora.reader`); nothing here knows where it runs.
`to_peft` writes what PEFT's `from_pretrained` reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from workbench.describe import Described, human_bytes
from workbench.errors import ConfigError
from workbench.lora.config import CONFIG, LoRAConfig
from workbench.lora.threads import in_threads

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class LoRAPair:
    """One module's a [r, inputs] and b [outputs, r]: it adds scale * b (a x), and scale * bias.

    bias [outputs] is `lora_bias`'s. of_embedding: a is [r, vocab], and a token takes a column.
    magnitude [outputs]: DoRA's, the lengths that the rows of W + scale * b a are given.
    """

    a: Tensor
    b: Tensor
    scale: float
    bias: Tensor | None = None
    of_embedding: bool = False
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """How many rows of a there are."""
        return self.a.shape[0]

    def delta(self) -> Tensor:
        """Return scale * b a [outputs, inputs] in float32."""
        return self.scale * (self.b.float() @ self.a.float())


@dataclass(frozen=True, eq=False, repr=False)
class Adapter(Described):
    """An adapter: pairs, trained biases [outputs] and modules stored whole, each by module path.

    Paths are those of checkpoints (`model.layers.0.self_attn.q_proj`). folder: where it can be read
    again, None for one that is in memory alone.
    """

    config: LoRAConfig
    pairs: Mapping[str, LoRAPair]
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    saved: Mapping[str, Tensor] = field(default_factory=dict)
    folder: Path | None = None

    @cached_property
    def rank(self) -> int:
        """How many rank rows it takes: its largest rank, and one more for what it always adds."""
        constant = bool(self.biases) or any(pair.bias is not None for pair in self.pairs.values())
        return max((pair.rank for pair in self.pairs.values()), default=0) + constant

    @property
    def adds_constants(self) -> bool:
        """Whether the last of its rank rows holds what it adds whatever the input."""
        return self.rank > max((pair.rank for pair in self.pairs.values()), default=0)

    @property
    def rescales(self) -> bool:
        """Whether it is DoRA: it scales outputs as well, and so is no sum with another."""
        return any(pair.magnitude is not None for pair in self.pairs.values())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name in the file."""
        found: dict[str, Tensor] = {}
        for path, pair in self.pairs.items():
            stem = f"{PREFIX}{path}.lora_"
            found[f"{stem}embedding_A" if pair.of_embedding else f"{stem}A.weight"] = pair.a
            found[f"{stem}embedding_B" if pair.of_embedding else f"{stem}B.weight"] = pair.b
            if pair.bias is not None:
                found[f"{stem}B.bias"] = pair.bias
            if pair.magnitude is not None:
                found[f"{stem}magnitude_vector"] = pair.magnitude
        for path, bias in self.biases.items():
            inner = ".base_layer" if path in self.pairs else ""
            found[f"{PREFIX}{path}{inner}.bias"] = bias
        return found | {f"{PREFIX}{path}.weight": tensor for path, tensor in self.saved.items()}

    @cached_property
    def digest(self) -> str:
        """A hash of all that it computes: equal where two adapters are equal."""
        digest, tensors = hashlib.blake2b(digest_size=16), sorted(self.tensors.items())
        hashes = in_threads(_hash, [tensor for _, tensor in tensors], self.num_bytes)
        for (name, tensor), content in zip(tensors, hashes, strict=True):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(content)
        digest.update(json.dumps([pair.scale for pair in self.pairs.values()]).encode())
        return digest.hexdigest()

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def to_peft(self, folder: str | Path) -> Path:
        """Write the adapter to a folder as PEFT does; return the folder.

        Raises `ConfigError` if the folder holds an adapter already.
        """
        folder = Path(folder)
        if (folder / WEIGHTS).exists():
            fix = "Name another folder, or remove it first."
            raise ConfigError("folder", str(folder), "holds an adapter already", fix)
        folder.mkdir(parents=True, exist_ok=True)
        # Cloned, since no two tensors of a file may share memory.
        whole = {name: tensor.contiguous().clone() for name, tensor in self.tensors.items()}
        save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
        content = json.dumps(self.config.to_json(), indent=2)
        (folder / CONFIG).write_text(content + "\n", encoding="utf-8")
        return folder

    def describe(self) -> dict[str, Any]:
        """Return rank, size and what it changes."""
        kinds = sorted({path.rpartition(".")[2] for path in self.pairs})
        facts: dict[str, Any] = {
            "rank": self.rank,
            "alpha": self.config.lora_alpha,
            "bytes": human_bytes(self.num_bytes),
            "modules": f"{len(self.pairs)} ({', '.join(kinds)})",
            "digest": self.digest[:12],
        }
        return {**facts, "stored whole": ", ".join(self.saved)} if self.saved else facts


def _hash(tensor: Tensor) -> bytes:
    """Return a hash of a tensor's bytes; SHA-256, which processors have instructions for."""
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).digest()
