"""Trained rows of an embedding (PEFT's `trainable_token_indices`), as an adapter of these rows.

PEFT stores the rows that stand in place of the base's. What they differ by is the product of a
column for each token and a row that is its change: a pair like any other, of as many ranks as
there are tokens. A tied head has the same rows.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import AdapterError
from workbench.lora.adapter import PREFIX, WEIGHTS
from workbench.lora.config import CONFIG, FIX, LoRAConfig
from workbench.lora.targets import Target
from workbench.lora.tensor_table import TensorTable
from workbench.models import DecoderLM

_LEAF = ".token_adapter.trainable_tokens_delta"


def rows_as_pairs(
    folder: Path, config: LoRAConfig, model: DecoderLM, targets: dict[str, Target], file: Any
) -> tuple[LoRAConfig, TensorTable]:
    """Return an adapter's settings and tensors with a pair in place of each module's trained rows.

    Raises `AdapterError` for rows that the model does not have or that are missing, and for modules
    that are adapted otherwise as well.
    """
    translator = _Translator(config, model, targets)
    table = TensorTable()
    for name in sorted(file.keys()):
        if name.endswith(_LEAF):
            path = name.removeprefix(PREFIX).removesuffix(_LEAF)
            table.update(translator.pairs(name, path, file.get_tensor(name)))
        else:
            table[name] = file.get_tensor(name)
    for key in config.token_indices:
        if key not in translator.found:
            translator.wrong(f"{WEIGHTS}: {key}{_LEAF} is missing, and the config names it")
    if translator.problems:
        raise AdapterError(folder, translator.problems, FIX)
    return translator.settings(), table


class _Translator:
    def __init__(self, config: LoRAConfig, model: DecoderLM, targets: dict[str, Target]) -> None:
        self.config, self.model, self.targets = config, model, targets
        self.problems: list[str] = []
        self.found: set[str] = set()  # keys of the config's whose rows are there
        self._ranks: dict[str, int] = {}
        if config.use_dora:
            self.wrong(f"{CONFIG}: trainable_token_indices: goes with no use_dora here")

    def wrong(self, problem: str) -> None:
        self.problems.append(problem)

    def pairs(self, name: str, path: str, rows: Tensor) -> dict[str, Tensor]:
        """Return the pairs of a module's trained rows; of a tied head as well."""
        keys = [k for k in self.config.token_indices if path == k or path.endswith(f".{k}")]
        target = self.targets.get(path)
        if target is None or not keys or not (target.is_embedding or target.is_head):
            self.wrong(f"{WEIGHTS}: {name}: the config names no such rows, or the model has none")
            return {}
        self.found.add(keys[0])
        ids, hidden = self.config.token_indices[keys[0]], self.model.config.hidden_size
        if tuple(rows.shape) != (len(ids), hidden) or max(ids) >= target.outputs:
            asked = f"{len(ids)} rows of {hidden} below {target.outputs}"
            self.wrong(
                f"{WEIGHTS}: {name}: has shape {list(rows.shape)}, config and model: {asked}"
            )
            return {}
        changed = [target]
        if self.model.config.tied_head:
            changed = [t for t in self.targets.values() if t.is_embedding or t.is_head]
        base = self.model.get_parameter(f"{target.layer}.weight").detach()
        change = rows.float() - base[list(ids)].float().cpu()
        made: dict[str, Tensor] = {}
        for one in changed:
            made.update(self._pair(one, ids, change))
        return made

    def _pair(self, target: Target, ids: tuple[int, ...], change: Tensor) -> dict[str, Tensor]:
        asked = {"is_head": target.is_head, "is_embedding": target.is_embedding}
        if self.config.targets(target.path, **asked) or self.config.saves(target.path):
            said = f"trainable_token_indices={list(ids)[:8]}"
            self.wrong(f"{CONFIG}: {said}: {target.path} is adapted or stored whole as well")
            return {}
        if target.path in self._ranks:
            self.wrong(f"{CONFIG}: trainable_token_indices: {target.path} is tied, and named twice")
            return {}
        self._ranks[target.path] = len(ids)
        chosen = torch.zeros(len(ids), target.outputs)
        chosen[torch.arange(len(ids)), list(ids)] = 1
        stem = f"{PREFIX}{target.path}.lora_"
        if target.is_embedding:
            return {f"{stem}embedding_A": chosen, f"{stem}embedding_B": change.T.contiguous()}
        return {f"{stem}A.weight": change, f"{stem}B.weight": chosen.T.contiguous()}

    def settings(self) -> LoRAConfig:
        config, paths = self.config, sorted(self._ranks)
        wanted = config.target_modules
        if isinstance(wanted, str):
            wanted = "|".join([f"(?:{wanted})", *map(re.escape, paths)])
        else:
            wanted = (*wanted, *paths)
        alphas = {  # so that the scale is 1
            re.escape(path): math.sqrt(rank) if config.use_rslora else float(rank)
            for path, rank in self._ranks.items()
        }
        ranks = {re.escape(path): rank for path, rank in self._ranks.items()}
        return replace(
            config,
            target_modules=wanted,
            token_indices={},
            rank_pattern=ranks | dict(config.rank_pattern),
            alpha_pattern=alphas | dict(config.alpha_pattern),
        )
