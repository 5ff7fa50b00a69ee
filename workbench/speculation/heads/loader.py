"""`load_head`: from a folder to a head beside its target; `save_head`: back, as it is published.

Which family a folder holds is read off its config and tensor names, and said in `head.source`.
Safetensors only, names strict, shapes checked against config and target before memory is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from workbench.errors import CheckpointError, ConfigError
from workbench.models.base import DecoderLM
from workbench.models.checkpoint import INDEX, WHOLE, Checkpoint
from workbench.models.weights import fill, match
from workbench.speculation.heads.base import Head
from workbench.speculation.heads.eagle3 import Eagle3Head
from workbench.speculation.heads.formats import dflash, eagle, eagle3, hydra, medusa, mtp
from workbench.speculation.heads.formats.found import Found

Reader = Callable[[Found], Head]
_SPECULATORS: dict[str, Reader] = {
    "eagle3": eagle3.read_speculators,
    "dflash": dflash.read_speculators,
    "mtp": mtp.read_speculators,
}
_WRITERS: dict[str, Callable[[Any, str], dict[str, Any]]] = {
    "medusa": medusa.write,
    "hydra": hydra.write,
    "eagle": eagle.write,
    "eagle3": eagle3.write,
    "mtp": mtp.write,
    "dflash": dflash.write,
}
_ALIASES: dict[str, Callable[[Any], dict[str, str]]] = {
    "medusa": medusa.aliases,
    "hydra": hydra.aliases,
}
_FILES = {"medusa": medusa.FILE, "hydra": hydra.FILE}
_FIX = "Fetch the head again, or write it anew with `save_head`."


class HeadCheckpoint(Checkpoint):
    """A folder's weights: one of the heads' own files where there is one, else as a model's."""

    def _own_file(self) -> str | None:
        if (self.folder / WHOLE).exists() or (self.folder / INDEX).exists():
            return None
        return next((f for f in _FILES.values() if (self.folder / f).is_file()), None)

    def _index(self) -> dict[str, str]:
        return {} if self._own_file() else super()._index()

    def _shards(self, index: dict[str, str]) -> list[str]:
        own = self._own_file()
        return [own] if own else super()._shards(index)


def load_head(folder: str | Path, target: DecoderLM, *, dtype: torch.dtype | None = None) -> Head:
    """Return the head in a folder, on the target's device, in eval mode, without gradients.

    dtype: the target's, if None. `head.source` says what was found. Raises `ConfigError` for a
    config that no family here reads or that was made for another target, `CheckpointError` with
    every fault of the weights.
    """
    folder = Path(folder)
    config = _read_config(folder)
    with HeadCheckpoint(folder) as checkpoint:
        if checkpoint.problems:
            raise CheckpointError(folder, checkpoint.problems, _FIX)
        found = Found(config, checkpoint, target)
        name, read = _recognise(found)
        with torch.device("meta"):
            head = read(found)
        pieces = head.pieces()
        problems = found.problems + match(pieces, found.tensors, ())
        if problems:
            raise CheckpointError(folder, problems, _FIX)
        fill(
            head,
            pieces,
            lambda name: head.decode(name, found.read(name)),
            target.device,
            dtype or target.dtype,
        )
    head.to(target.device)
    head.source = "; ".join([f"{name}, from {folder}", *found.notes])
    return head.eval()


def save_head(
    head: Head, folder: str | Path, *, base: str = "", dtype: torch.dtype | None = None
) -> Path:
    """Write a head to a folder in its family's published layout; return the folder.

    base: what its target is called. dtype: what its weights are written in, as they are if None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in head.tensors()}
    for name, first in _ALIASES.get(head.kind, lambda _: {})(head).items():
        tensors[name] = tensors[first]
    if isinstance(head, Eagle3Head) and head.vocabulary is not None:
        tensors |= {"d2t": head.vocabulary.d2t, "t2d": head.vocabulary.t2d}
    config = _WRITERS[head.kind](head, base)
    stored = dtype or head.dtype
    config["torch_dtype"] = str(stored).removeprefix("torch.")
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    # safetensors refuses tensors that share memory: rows of one matrix, aliases
    apart = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    save_file(apart, folder / _FILES.get(head.kind, WHOLE), metadata={"format": "pt"})
    return folder


def _recognise(found: Found) -> tuple[str, Reader]:
    """Return what the folder holds, in words, and its reader."""
    config, names = found.config, found.tensors
    stated = config.get("speculators_model_type")
    if stated is not None:
        if stated not in _SPECULATORS:
            known = f"Known: {', '.join(_SPECULATORS)}."
            raise found.refuse("speculators_model_type", stated, "is not read here", known)
        return f"{stated}, speculators format", _SPECULATORS[stated]
    if "medusa_num_heads" in config or found.checkpoint.folder.joinpath(medusa.FILE).is_file():
        return "medusa", medusa.read
    if "hydra_num_heads" in config:
        return "hydra", hydra.read
    if "dflash_config" in config:
        return "dflash", dflash.read
    layout = mtp.layout_of(found)
    if layout is not None:
        return f"mtp, {layout} layout", mtp.read
    if any(name.startswith("midlayer.") for name in names):
        return "eagle3, raw layout (midlayer)", eagle3.read
    if "layers.0.hidden_norm.weight" in names:
        return "eagle3, raw layout (layers.0)", eagle3.read
    if "fc.weight" in names and any(name.startswith("layers.0.") for name in names):
        return "eagle, raw layout", eagle.read
    raise ConfigError(
        f"{found.checkpoint.folder / 'config.json'}",
        sorted(config),
        f"no head that is known here; its tensors begin {sorted(names)[:4]}",
        "Known: Medusa, Hydra, EAGLE-1/2/3, MTP, DFlash, as published or in speculators format.",
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(folder, [f"config.json cannot be read: {error}"], _FIX) from error
    if not isinstance(config, dict):
        raise CheckpointError(folder, ["config.json is not a table"], _FIX)
    return config
