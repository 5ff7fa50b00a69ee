"""`read_adapter`: from what PEFT or NeMo wrote to an `Adapter` that is sure to fit a model.

Config and header checks come first and report every fault at once; only then are tensors read.
Weights are read from safetensors alone, names strictly: a tensor without a home is a fault, and so
is a module that the config names and the file lacks. Nothing is unpickled or fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from workbench.errors import AdapterError
from workbench.lora.adapter import PREFIX, WEIGHTS, Adapter, LoRAPair
from workbench.lora.config import FIX, LoRAConfig, read_config
from workbench.lora.experts import take_apart
from workbench.lora.nemo import WEIGHTS as NEMO_WEIGHTS
from workbench.lora.nemo import is_nemo, read_nemo
from workbench.lora.targets import Target, targets_of
from workbench.lora.threads import in_threads
from workbench.lora.token_rows import rows_as_pairs
from workbench.lora.weights_file import WeightsFile
from workbench.models import DecoderLM
from workbench.models.resolve import shipped_loras

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_NAME = re.compile(
    r"(?P<path>.+?)\.(?:modules_to_save\.)?"
    r"(?P<kind>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector(?:\.weight)?"
    r"|base_layer\.weight|weight|base_layer\.bias|bias)$"
)
_MAGNITUDE = "lora_magnitude_vector"
_HALVES = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")
Shapes = dict[tuple[str, str], tuple[str, tuple[int, ...]]]


def read_adapter(
    folder: str | Path,
    model: DecoderLM,
    *,
    max_rank: int = 256,
    targets: Mapping[str, Target] | None = None,
) -> Adapter:
    """Return the adapter in PEFT's folder, or in NeMo's archive, checked against a model.

    targets: what `targets_of` returned for it, where that is known.
    Raises `AdapterError`, naming file, key and value of every fault: an unreadable or unsupported
    config, damaged weights, tensors that the model has no place for or that are missing, wrong
    shapes, ranks above `max_rank`, numbers that are not finite.
    """
    folder, targets = Path(folder), dict(targets or targets_of(model))
    if is_nemo(folder):
        given, tensors = read_nemo(folder, model.config)
        return _Reader(folder, given, model, targets, max_rank, tensors, NEMO_WEIGHTS).read()
    if not folder.is_dir():
        fix = f"Give a folder that PEFT wrote. {shipped_loras(model.source)}".rstrip()
        raise AdapterError(folder.resolve(), ["is no folder"], fix)
    config = read_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        found = sorted(p.name for p in folder.glob("adapter_model*"))
        what = f"only {', '.join(found)}, which is not read" if found else "not there"
        raise AdapterError(folder, [f"{WEIGHTS} is {what}"], FIX)
    try:
        with WeightsFile(path) as file:
            held: Any = file
            if config.target_parameters:
                config, held = take_apart(folder, config, model, targets, held)
            if config.token_indices:
                config, held = rows_as_pairs(folder, config, model, targets, held)
            return _Reader(folder, config, model, targets, max_rank, held).read()
    except (SafetensorError, OSError) as error:
        problem = f"{WEIGHTS} ({path.stat().st_size} bytes) is damaged: {error}"
        raise AdapterError(folder, [problem], "Fetch or export it again.") from error


class _Reader:
    """One file's tensors against one model's targets."""

    def __init__(
        self,
        folder: Path,
        config: LoRAConfig,
        model: DecoderLM,
        targets: dict[str, Target],
        max_rank: int,
        file: Any,
        file_name: str = WEIGHTS,
    ) -> None:
        self.file_name = file_name
        self.folder, self.config, self.max_rank, self.file = folder, config, max_rank, file
        self.model, self.targets = model, targets
        self.problems: list[str] = []
        self.shapes: Shapes = {}

    def read(self) -> Adapter:
        for name in sorted(self.file.keys()):
            self._place(name)
        self._check_complete()
        for (path, kind), (name, shape) in self.shapes.items():
            self._check_shape(self.targets[path], kind, name, shape)
        self._raise()
        adapter = Adapter(self.config, self._pairs(), self._all("bias"), self._saved())
        tensors = adapter.tensors
        for name, finite in zip(
            tensors, in_threads(_is_finite, tensors.values(), adapter.num_bytes), strict=True
        ):
            if not finite:
                self._wrong(name, "holds numbers that are not finite")
        self._raise()
        return adapter

    def _wrong(self, name: str, problem: str) -> None:
        self.problems.append(f"{self.file_name}: {name}: {problem}")

    def _raise(self) -> None:
        if self.problems:
            known = self.config.base_model
            fix = f"It was made for {known!r}. " if known else ""
            raise AdapterError(self.folder, self.problems, fix + FIX)

    def _place(self, name: str) -> None:
        """Note which module a tensor belongs to, and its shape."""
        header = self.file.get_slice(name)
        found = _NAME.match(name.removeprefix(PREFIX))
        path, kind = (found["path"], found["kind"]) if found else ("", "")
        if found is None or not name.startswith(PREFIX) or path not in self.targets:
            self._wrong(name, f"the model has no such place (shape {list(header.get_shape())})")
        elif header.get_dtype() not in _FLOATS:
            self._wrong(name, f"is {header.get_dtype()}, not a float")
        else:
            kind = "bias" if kind == "base_layer.bias" else kind  # of a module with a pair
            kind = _MAGNITUDE if kind.startswith(_MAGNITUDE) else kind  # older files say .weight
            self.shapes[path, kind] = name, tuple(header.get_shape())

    def _check_complete(self) -> None:
        """Hold the tensors that are there against those that the config names."""
        by_path: dict[str, list[str]] = {}
        for path, kind in self.shapes:
            by_path.setdefault(path, []).append(kind)
        for path, target in self.targets.items():
            asked = {"is_head": target.is_head, "is_embedding": target.is_embedding}
            wanted, saved = self.config.targets(path, **asked), self.config.saves(path)
            kinds = by_path.get(path, [])
            halves = [kind for kind in kinds if kind in _HALVES]
            if wanted and len(halves) != 2:
                lacks = "both A and B" if not halves else f"the other half of {halves[0]}"
                self._wrong(path, f"{lacks} missing, and the config targets it")
            if bool(halves or _MAGNITUDE in kinds) and self.config.use_dora != (
                _MAGNITUDE in kinds
            ):
                has = "lacks its" if self.config.use_dora else "has a"
                self._wrong(path, f"{has} {_MAGNITUDE}, and use_dora={self.config.use_dora}")
            if halves and not wanted:
                self._wrong(path, "is adapted, and the config does not target it")
            if saved and "weight" not in kinds:
                self._wrong(path, "is missing, and the config's modules_to_save names it")
            if "weight" in kinds and not saved and not wanted:
                self._wrong(path, "is stored whole, and the config's modules_to_save lacks it")
            if saved and not (target.is_embedding or target.is_head):
                self._wrong(path, "modules_to_save: only the embedding and the head may be whole")
            if "bias" in kinds and (self.config.bias == "none" or not target.has_bias):
                self._wrong(
                    path, f"has a bias, and bias={self.config.bias!r} or the model has none"
                )
        for module in self.config.modules_to_save:
            if not any(self.config.saves(path) for path in self.targets):
                self._wrong(module, "modules_to_save: the model has no such module to replace")

    def _check_shape(self, target: Target, kind: str, name: str, shape: tuple[int, ...]) -> None:
        rank = self.config.rank(target.path)
        if kind.endswith(("_A", "_A.weight")) and rank > self.max_rank:
            self._wrong(name, f"rank {rank} is above max_rank={self.max_rank}")
        wanted = {
            "lora_A.weight": (rank, target.inputs),
            "lora_B.weight": (target.outputs, rank),
            "lora_B.bias": (target.outputs,),
            "lora_embedding_A": (rank, target.outputs),
            "lora_embedding_B": (target.inputs, rank),
            "bias": (target.outputs,),
            _MAGNITUDE: (target.num_added,),
        }.get(kind, (target.outputs, target.inputs))
        if shape != wanted:
            self._wrong(name, f"has shape {list(shape)}, config and model make it {list(wanted)}")

    def _tensor(self, path: str, kind: str) -> Tensor | None:
        if (path, kind) not in self.shapes:
            return None
        tensor: Tensor = self.file.get_tensor(self.shapes[path, kind][0])
        return tensor

    def _all(self, kind: str, only: Callable[[str], bool] = lambda path: True) -> dict[str, Tensor]:
        paths = [path for path, its in self.shapes if its == kind and only(path)]
        found = {path: self._tensor(path, kind) for path in paths}
        return {path: tensor for path, tensor in found.items() if tensor is not None}

    def _pairs(self) -> dict[str, LoRAPair]:
        pairs = {}
        for path in self.targets:
            first, second = (self._tensor(path, f"lora_{half}.weight") for half in ("A", "B"))
            if first is None:
                first, second = (self._tensor(path, f"lora_embedding_{half}") for half in "AB")
            if first is not None and second is not None:
                bias, embeds = self._tensor(path, "lora_B.bias"), self.targets[path].is_embedding
                magnitude = self._tensor(path, _MAGNITUDE)
                scale = self.config.scale(path)
                pairs[path] = LoRAPair(first, second, scale, bias, embeds, magnitude)
        return pairs

    def _saved(self) -> dict[str, Tensor]:
        """Return the modules that are stored whole.

        PEFT stores an adapted embedding's own table as well: it must be the model's.
        """
        for kind in ("base_layer.weight", "weight"):
            for path, tensor in self._all(kind, lambda path: not self.config.saves(path)).items():
                base = self.model.get_parameter(f"{self.targets[path].layer}.weight")
                if not torch.equal(tensor.to(base.dtype), base[self.targets[path].rows].cpu()):
                    self._wrong(path, "the adapter was trained on another table of embeddings")
        return self._all("weight", self.config.saves)


def _is_finite(tensor: Tensor) -> bool:
    """Whether all of a tensor's numbers are finite: its extremes are, as a NaN would be one."""
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())
