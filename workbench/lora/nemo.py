"""LoRA as NeMo saves it: one archive (`.nemo`), or the folder it unpacks to, of two files.

`model_config.yaml` says rank and alpha under `lora_tuning`, `model_weights.ckpt` holds `linear_in`
and `linear_out` by Megatron's names. Fused q, k and v come group by group (a group's queries, its
key, its value), gate and up one after the other; each part gets the `linear_in` they share. What is
read becomes tensors by PEFT's names, which `workbench.lora.reader` holds against the model. Nothing
is unpacked to disk; the weights pass torch's unpickler for weights alone, which runs no code.
"""

from __future__ import annotations

import io
import pickle
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from workbench.config import ModelConfig
from workbench.errors import AdapterError
from workbench.lora.adapter import PREFIX
from workbench.lora.config import CONFIG as PEFT_CONFIG
from workbench.lora.config import LoRAConfig
from workbench.lora.tensor_table import TensorTable

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
FIX = "Export it with NeMo as one archive without parallelism, or for Hugging Face's PEFT."
_MAX_MEMBERS, _MAX_CONFIG, _MAX_WEIGHTS = 64, 1 << 20, 8 << 30
_KEY = re.compile(
    r"(?:.*\.)?layers\.(?P<layer>\d+)\.(?P<place>(?:self_attention|mlp)\.adapter_layer\.[\w.]+)"
    r"\.(?P<half>linear_in|linear_out)\.weight"
)
_QKV, _FC1 = "self_attention.adapter_layer.", "mlp.adapter_layer."
# An adapter's place -> the modules of ours that it changes.
_MODULES = {
    f"{_QKV}lora_kqv_adapter": ("q_proj", "k_proj", "v_proj"),
    f"{_QKV}lora_unfused_kqv_adapter.q_adapter": ("q_proj",),
    f"{_QKV}lora_unfused_kqv_adapter.k_adapter": ("k_proj",),
    f"{_QKV}lora_unfused_kqv_adapter.v_adapter": ("v_proj",),
    f"{_QKV}lora_dense_attention_adapter": ("o_proj",),
    f"{_FC1}lora_hto4h_adapter": ("gate_proj", "up_proj"),
    f"{_FC1}lora_unfused_hto4h_adapter.gate_adapter": ("gate_proj",),
    f"{_FC1}lora_unfused_hto4h_adapter.up_adapter": ("up_proj",),
    f"{_FC1}lora_4htoh_adapter": ("down_proj",),
}
# Of `lora_tuning`, what is read, and what is of training alone.
_READ = frozenset({"adapter_dim", "alpha", "layer_selection", "variant", "target_modules"})
_TRAINING = frozenset({"adapter_dropout", "column_init_method", "row_init_method"})


class NemoAdapter(NamedTuple):
    """What an archive or a folder holds: settings, and tensors by PEFT's names."""

    config: LoRAConfig
    tensors: TensorTable


def is_nemo(path: Path) -> bool:
    """Whether a path is an archive, or a folder with NeMo's weights and no adapter of PEFT's."""
    if path.is_file() or (path / PEFT_CONFIG).exists():
        return path.is_file()
    return (path / WEIGHTS).is_file() or (path / "weights").is_dir()


def read_nemo(path: Path, model: ModelConfig) -> NemoAdapter:
    """Return the adapter that NeMo saved at a path.

    Raises `AdapterError` with file, key and value of what is wrong or not supported: another
    scheme than LoRA, tensors split over devices, sizes that are not the model's, unknown keys.
    """
    config, weights = _open(path)
    return _Translator(path, model).translate(config, weights)


def _open(path: Path) -> tuple[Any, Any]:
    """Return the content of both files."""
    if path.is_file():
        found = _members(path)
    elif (path / WEIGHTS).is_file():
        found = {name: (path / name).read_bytes for name in (CONFIG, WEIGHTS)}
        sizes = {name: f.stat().st_size for name in found if (f := path / name).is_file()}
        _check_sizes(path, sizes)
    else:
        problem = "is a checkpoint of NeMo 2, whose weights lie spread over files"
        raise AdapterError(path, [problem], "Export it: llm.export_ckpt(…, target='hf-peft').")
    try:
        config = yaml.safe_load(found[CONFIG]())
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise AdapterError(path, [f"{CONFIG} cannot be read: {error}"], FIX) from error
    try:
        weights = torch.load(io.BytesIO(found[WEIGHTS]()), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        problem = f"{WEIGHTS} is damaged, or holds more than weights: {str(error)[:200]}"
        raise AdapterError(path, [problem], "Fetch or export it again.") from error
    return config, weights


def _members(path: Path) -> dict[str, Callable[[], bytes]]:
    """Return what reads the two files of an archive; they stay in it until asked for."""
    found: dict[str, Callable[[], bytes]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for number, member in enumerate(archive):
                if number >= _MAX_MEMBERS:
                    raise AdapterError(path, [f"holds more than {_MAX_MEMBERS} files"], FIX)
                name = str(PurePosixPath(member.name))
                if name in (CONFIG, WEIGHTS) and member.isfile():
                    _check_sizes(path, {name: member.size})
                    found[name] = _reader(path, member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        problem = f"is no archive of NeMo's, uncompressed: {error}"
        raise AdapterError(path, [problem], "Give a .nemo file, or PEFT's folder.") from error
    missing = [name for name in (CONFIG, WEIGHTS) if name not in found]
    if missing:
        raise AdapterError(path, [f"{name} is not in it" for name in missing], FIX)
    return found


def _reader(path: Path, offset: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    return read


def _check_sizes(path: Path, sizes: Mapping[str, int]) -> None:
    limits = {CONFIG: _MAX_CONFIG, WEIGHTS: _MAX_WEIGHTS}
    large = [name for name, size in sizes.items() if size > limits[name]]
    if large:
        problems = [f"{name} has {sizes[name]} bytes, above {limits[name]}" for name in large]
        raise AdapterError(path, problems, FIX)


class _Translator:
    """Turns settings and tensors into PEFT's, noting every fault."""

    def __init__(self, path: Path, model: ModelConfig) -> None:
        self.path, self.model = path, model
        self.problems: list[str] = []

    def translate(self, config: Any, weights: Any) -> NemoAdapter:
        settings = self._settings(config if isinstance(config, dict) else {})
        if not isinstance(weights, dict) or not all(isinstance(k, str) for k in weights):
            self.problems.append(f"{WEIGHTS}: is no table of tensors by name")
            weights = {}
        tensors = TensorTable()
        for key, tensor in weights.items():
            tensors.update(self._translated(key, tensor))
        if self.problems:
            raise AdapterError(self.path, self.problems, FIX)
        modules = {name.removesuffix(".lora_A.weight").rpartition(".")[2] for name in tensors}
        targets = tuple(sorted(module for module in modules if module.endswith("_proj")))
        if not targets:
            raise AdapterError(self.path, [f"{WEIGHTS}: holds no adapter"], FIX)
        rank, alpha, layers = settings
        return NemoAdapter(LoRAConfig(rank, alpha, targets, layers_to_transform=layers), tensors)

    def _settings(self, config: dict[str, Any]) -> tuple[int, float, tuple[int, ...]]:
        """Return rank, alpha and layers (empty: all)."""
        peft = config.get("peft")
        peft = peft if isinstance(peft, dict) else {}
        scheme = peft.get("peft_scheme", "lora")
        if scheme not in ("lora", None):
            self._wrong("peft.peft_scheme", scheme, "only lora is read")
        self._check_base(config)
        tuning = peft.get("lora_tuning", config.get("lora_tuning"))
        if not isinstance(tuning, dict):
            self._wrong("lora_tuning", tuning, "must say adapter_dim and alpha")
            return 1, 1.0, ()
        for key in sorted(map(str, tuning.keys() - _READ - _TRAINING)):
            if tuning[key] not in (None, False, 0, "", [], {}):
                self._wrong(f"lora_tuning.{key}", tuning[key], "is not supported")
        if tuning.get("variant", "nemo") not in ("nemo", "canonical", None):
            self._wrong("lora_tuning.variant", tuning["variant"], "must be nemo or canonical")
        rank, layers = tuning.get("adapter_dim"), tuning.get("layer_selection") or []
        if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank <= 1 << 16:
            self._wrong("lora_tuning.adapter_dim", rank, "must be a rank of at least 1")
            rank = 1
        alpha = rank if tuning.get("alpha") is None else tuning["alpha"]
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) < 1e9:
            self._wrong("lora_tuning.alpha", alpha, "must be a number")
            alpha = 1.0
        if not isinstance(layers, list) or not all(isinstance(n, int) and n > 0 for n in layers):
            self._wrong("lora_tuning.layer_selection", layers, "must be numbers from 1 on")
            layers = []
        return rank, float(alpha), tuple(n - 1 for n in layers)

    def _check_base(self, config: dict[str, Any]) -> None:
        model = self.model
        ours = {
            "hidden_size": model.hidden_size,
            "num_layers": model.num_layers,
            "num_attention_heads": model.num_heads,
            "num_query_groups": model.num_kv_heads,
            "ffn_hidden_size": model.intermediate_size,
        }
        for key, value in ours.items():
            if config.get(key) not in (None, value):
                self._wrong(key, config[key], f"the model has {value}")
        for key in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
            if config.get(key) not in (None, 1):
                self._wrong(key, config[key], "tensors that are split over devices are not read")

    def _wrong(self, key: str, value: Any, problem: str) -> None:
        self.problems.append(f"{CONFIG}: {key}={repr(value)[:80]}: {problem}")

    def _translated(self, key: str, tensor: Any) -> dict[str, Tensor]:
        """Return a tensor's parts by PEFT's names."""
        found = _KEY.fullmatch(key)
        modules = () if found is None else _MODULES.get(found["place"], ())
        if found is None or not modules or not isinstance(tensor, Tensor) or tensor.dim() != 2:
            shape = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            self.problems.append(f"{WEIGHTS}: {key}: the model has no such place ({shape})")
            return {}
        parts = [tensor] * len(modules)
        if found["half"] == "linear_out" and len(modules) > 1:
            parts = self._split(key, tensor, len(modules))
        block = "self_attn" if found["place"].startswith("self") else "mlp"
        stem = f"{PREFIX}model.layers.{int(found['layer'])}.{block}"
        half = "lora_A" if found["half"] == "linear_in" else "lora_B"
        named = zip(modules, parts, strict=bool(parts))
        return {f"{stem}.{name}.{half}.weight": part.contiguous() for name, part in named}

    def _split(self, key: str, tensor: Tensor, count: int) -> list[Tensor]:
        """Return the parts of a fused `linear_out` [outputs, r]; none if it has other outputs."""
        model, (outputs, rank) = self.model, tensor.shape
        heads, groups, size = model.num_heads, model.num_kv_heads, model.head_dim
        wanted = (heads + 2 * groups) * size if count == 3 else 2 * model.intermediate_size
        if outputs != wanted:
            problem = f"has {outputs} outputs, the model's fused ones are {wanted}"
            self.problems.append(f"{WEIGHTS}: {key}: {problem}")
            return []
        if count == 2:
            return list(tensor.chunk(2))
        grouped = tensor.view(groups, heads // groups + 2, size, rank)
        queries, keys, values = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
        return [part.reshape(-1, rank) for part in (queries, keys, values)]
