"""`load_model`: from a name to a model with its weights and tokenizer in place.

Config and header checks come first and report every fault at once; only then is memory taken. The
model is made on the meta device and filled tensor by tensor, so there are never two copies of it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.describe import human_bytes
from workbench.errors import CheckpointError, ConfigError
from workbench.models.base import DecoderLM
from workbench.models.checkpoint import Checkpoint
from workbench.models.dtype import auto_dtype, named_dtype
from workbench.models.hf import dtype_name
from workbench.models.registry import FAMILIES, Families, find_family
from workbench.models.resolve import resolve_model
from workbench.models.weights import Piece, expand, fill, match

if TYPE_CHECKING:
    from workbench.models.tokenizer import Tokenizer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_CODES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float32"}
_FIX = (
    "Fetch the checkpoint again, or write it anew from transformers with "
    "`model.save_pretrained(folder)`, which writes safetensors and the index."
)


def load_model(
    model: str | Path = "tinypy",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    families: Families = FAMILIES,
) -> DecoderLM:
    """Return a model in eval mode whose parameters ask for no gradient.

    `.tokenizer` is the checkpoint's, or None where the folder holds no tokenizer file at all.

    model: an embedded model's name, a checkpoint folder, or a hub id (see `resolve_model`).
    device: `auto` is CUDA where there is one, else the CPU.
    dtype: `auto` is the checkpoint's on CUDA; on a CPU it is bfloat16 where both checkpoint and
    processor have that, else float32. The returned model's `config.dtype` says what was chosen.
    families: architecture names to classes, for models defined outside this package.

    Raises `ConfigError` (unknown model, architecture, device, dtype; a config that cannot run) or
    `CheckpointError` (one that lists all faults of the weights).
    """
    target = resolve_device(device)
    wanted = named_dtype(dtype)
    folder = resolve_model(model)
    hf = _read_config(folder)
    family = find_family(hf, families)
    config = family.config_from_hf(hf)
    with Checkpoint(folder) as checkpoint:
        with torch.device("meta"):
            loaded = family(config)
        pieces = _pieces(loaded)
        _check(loaded, pieces, checkpoint)
        tokenizer = _tokenizer(folder)
        if wanted is None:
            stated = dtype_name(hf) or _CODES[checkpoint.tensors[pieces[0].source].dtype]
            wanted = auto_dtype(stated, target)
        if target.type == "cuda":
            _require_room(pieces, wanted, target, torch.cuda.mem_get_info(target)[0])
        fill(loaded, pieces, checkpoint.read, target, wanted)
    loaded.tie_head()
    loaded.to(target)  # only buffers are left to move; a weight still on meta would be refused
    loaded.config = replace(config, dtype=str(wanted).removeprefix("torch."))
    loaded.tokenizer, loaded.source = tokenizer, str(model)
    return loaded.eval()


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device meant, `auto` being CUDA where there is one; `ConfigError` if not here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        fix = "Give auto, cpu, cuda or cuda:0."
        raise ConfigError("device", device, "is no device of torch's", fix) from error
    if target.type not in ("cpu", "cuda"):
        raise ConfigError("device", device, "only cpu and cuda run here", "Give cpu or cuda.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if target.type == "cuda" and (target.index or 0) >= count:
        fix = "Give auto, or a device that is there."
        raise ConfigError("device", str(device), f"this machine has {count} CUDA devices", fix)
    return target


def _read_config(folder: Path) -> dict[str, Any]:
    """Return `config.json`, with the end tokens of `generation_config.json` where that has any."""
    hf = _read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    if generation.is_file():
        eos = _read_json(generation).get("eos_token_id")
        if eos is not None:
            hf["eos_token_id"] = eos
    return hf


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        problem = f"{path.name} cannot be read: {error}"
        raise CheckpointError(path.parent, [problem], _FIX) from error
    if not isinstance(content, dict):
        raise CheckpointError(path.parent, [f"{path.name} is not a table"], _FIX)
    return content


def _pieces(model: DecoderLM) -> list[Piece]:
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    parts = model.weight_parts(model.config)
    return expand(model.weight_rules, parts, shapes, model.config.num_layers)


def _check(model: DecoderLM, pieces: list[Piece], checkpoint: Checkpoint) -> None:
    """Raise one `CheckpointError` with every fault of the files and of their tensors."""
    problems = list(checkpoint.problems)
    if checkpoint.tensors:
        tied = model.tied_weights if model.config.tied_head else {}
        ignored = (*model.ignored_weights, *tied)
        present = [piece for piece in pieces if piece.source not in checkpoint.lost]
        problems += match(present, checkpoint.tensors, ignored)
        problems += [
            f"tensor {copy} differs from {original}, but config.json ties the two"
            for copy, original in tied.items()
            if copy in checkpoint.tensors
            and original in checkpoint.tensors
            and not torch.equal(checkpoint.read(copy), checkpoint.read(original))
        ]
    if problems:
        raise CheckpointError(checkpoint.folder, problems, _FIX)


def _require_room(
    pieces: list[Piece], dtype: torch.dtype, device: torch.device, num_free: int
) -> None:
    """Raise `ConfigError` where the weights would take more than `num_free` bytes."""
    num_bytes = dtype.itemsize * sum(prod(piece.shape) for piece in pieces)
    if num_bytes > num_free:
        needs, has = human_bytes(num_bytes), human_bytes(num_free)
        problem = f"the weights take {needs} as {dtype}, and {has} are free"
        fix = "End what else uses the device (`engine.close()`), or choose a smaller dtype."
        raise ConfigError("device", str(device), problem, fix)


def _tokenizer(folder: Path) -> Tokenizer | None:
    """Return the folder's tokenizer; None for bare weights, without any tokenizer file."""
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        return None
    from workbench.models.tokenizer import Tokenizer  # imports transformers: seconds

    return Tokenizer.from_folder(folder)
