"""PEFT's adapters of fused expert parameters, taken apart into those of single experts.

transformers holds the experts of a layer as one parameter [experts, outputs, inputs], and PEFT's
`target_parameters` adapts it whole: `lora_A` [experts * r, inputs] is expert after expert, the
columns of `lora_B` [outputs, r * experts] take turns over the experts; parameters of one module are
wrapped in each other (`base_layer`). A family's `fused_parameters` says which modules of
checkpoints these are; what comes out is what an adapter of these modules would hold.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from workbench.errors import AdapterError
from workbench.lora.adapter import PREFIX, WEIGHTS
from workbench.lora.config import CONFIG, FIX, LoRAConfig
from workbench.lora.targets import Target
from workbench.lora.tensor_table import TensorTable
from workbench.models import DecoderLM

_NAME = re.compile(r"(?P<module>.+?)(?P<inner>(?:\.base_layer)*)\.lora_(?P<half>[AB])\.weight")
_LAYER = re.compile(r"(?P<stem>.*\blayers\.\d+\.)(?P<rest>.+)")


class _Fused(NamedTuple):
    """A fused parameter: its path, and for each expert the modules that it is made of."""

    path: str
    experts: list[list[Target]]

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of an expert."""
        parts = self.experts[0]
        return sum(part.outputs for part in parts), parts[0].inputs


def take_apart(
    folder: Path, config: LoRAConfig, model: DecoderLM, targets: dict[str, Target], file: Any
) -> tuple[LoRAConfig, TensorTable]:
    """Return an adapter's settings and tensors with modules in place of fused parameters.

    Raises `AdapterError` for parameters that the model does not have, and tensors that fit none.
    """
    unfuser = _Unfuser(config, model, targets)
    table, problems = unfuser.read(file), unfuser.problems
    known = [*model.fused_parameters]
    for name in config.target_parameters:
        if not any(_names(name, path) for path in known):
            problem = f"names no parameter that can be adapted here: {', '.join(known) or 'none'}"
            problems.append(f"{CONFIG}: target_parameters={name!r}: {problem}")
    if problems:
        raise AdapterError(folder, problems, FIX)
    return unfuser.settings(), table


class _Unfuser:
    def __init__(self, config: LoRAConfig, model: DecoderLM, targets: dict[str, Target]) -> None:
        self.config, self.model, self.targets = config, model, targets
        self.problems: list[str] = []
        self._patterns: dict[str, tuple[int, float]] = {}  # of module paths -> rank, alpha
        self._modules: set[str] = set()

    def read(self, file: Any) -> TensorTable:
        table, wrapped = TensorTable(), dict[tuple[str, str], dict[str, str]]()
        for name in sorted(file.keys()):
            found = _NAME.fullmatch(name.removeprefix(PREFIX))
            if found is not None and self._parameters(found["module"]):
                wrapped.setdefault((found["module"], found["inner"]), {})[found["half"]] = name
            else:
                table[name] = file.get_tensor(name)
        for (module, _), names in wrapped.items():
            if len(names) == 2:
                self._take_apart(table, module, names, *(file.get_tensor(names[h]) for h in "AB"))
            else:
                (name,) = names.values()
                self.problems.append(f"{WEIGHTS}: {name}: its other half is missing")
        return table

    def _parameters(self, module: str) -> list[_Fused]:
        """Return a module's parameters that the config names, if it holds fused ones."""
        found = _LAYER.fullmatch(module)
        if found is None or module in self.targets:
            return []
        fused = []
        for end, parts in self.model.fused_parameters.items():
            path = found["stem"] + end
            named = any(_names(name, path) for name in self.config.target_parameters)
            if named and path.rpartition(".")[0] == module:
                fused.append(_Fused(path, self._experts(found["stem"], parts)))
        return fused

    def _experts(self, stem: str, parts: tuple[str, ...]) -> list[list[Target]]:
        experts: list[list[Target]] = []
        for expert in range(max(1, self.model.config.num_experts)):
            paths = [stem + part.format(expert=expert) for part in parts]
            if expert and not any("{expert}" in part for part in parts):
                break
            experts.append([self.targets[path] for path in paths if path in self.targets])
        return experts

    def _take_apart(
        self, table: TensorTable, module: str, names: dict[str, str], a: Tensor, b: Tensor
    ) -> None:
        found = [
            fused
            for fused in self._parameters(module)
            if (b.shape[0], a.shape[-1]) == fused.shape
            and a.dim() == b.dim() == 2
            and len(a) == b.shape[1] == len(fused.experts) * self.config.rank(fused.path)
        ]
        if len(found) != 1:
            shapes = f"{list(a.shape)} and {list(b.shape)}"
            which = ", ".join(fused.path for fused in self._parameters(module))
            problem = f"{shapes} fit {'none' if not found else 'more than one'} of {which}"
            self.problems.append(f"{WEIGHTS}: {names['A']}: {problem}")
            return
        (fused,) = found
        count, rank = len(fused.experts), self.config.rank(fused.path)
        halves_a, halves_b = a.view(count, rank, -1), b.view(len(b), rank, count)
        for number, parts in enumerate(fused.experts):
            begin = 0
            for part in parts:
                stem = f"{PREFIX}{part.path}.lora_"
                rows = halves_b[begin : begin + part.outputs, :, number]
                table[f"{stem}A.weight"] = halves_a[number].contiguous()
                table[f"{stem}B.weight"] = rows.contiguous()
                begin += part.outputs
                self._note(part, fused.path)

    def _note(self, part: Target, path: str) -> None:
        """Remember a module, and rank and alpha where they are not the usual ones."""
        self._modules.add(part.path.rpartition(".")[2])
        rank, alpha = self.config.rank(path), self.config.alpha(path)
        pattern = re.sub(r"experts\\\.\d+", r"experts\\.\\d+", re.escape(part.path))
        if self.config.rank(part.path) != rank or self.config.alpha(part.path) != alpha:
            self._patterns[pattern] = rank, alpha

    def settings(self) -> LoRAConfig:
        config, modules = self.config, sorted(self._modules)
        wanted = config.target_modules
        if isinstance(wanted, str):
            wanted = rf"(?:{wanted})|.*\.(?:{'|'.join(map(re.escape, modules))})"
        else:
            wanted = (*wanted, *(name for name in modules if name not in wanted))
        ranks = {pattern: rank for pattern, (rank, _) in self._patterns.items()}
        alphas = {pattern: alpha for pattern, (_, alpha) in self._patterns.items()}
        return replace(
            config,
            target_modules=wanted,
            target_parameters=(),
            rank_pattern=ranks | dict(config.rank_pattern),
            alpha_pattern=alphas | dict(config.alpha_pattern),
        )


def _names(name: str, path: str) -> bool:
    """Whether a name of `target_parameters` means a parameter: its path, or an end of it."""
    return path == name or path.endswith(f".{name}") or name.endswith(f".{path}")
