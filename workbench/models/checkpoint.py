"""A checkpoint folder's weights, read only from safetensors: what is in there, and is it whole.

`Checkpoint` opens every shard through `safe_open` (which checks header and size) and lists the
tensors. It collects faults instead of raising at the first. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.models.weights import TensorInfo

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Checkpoint:
    """The tensors of a folder. A context manager: the files stay open until its end.

    `tensors` maps names to what the headers say; `problems` lists every fault of the files
    themselves; `lost` are the tensors that the index puts into files which could not be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, TensorInfo] = {}
        self.problems: list[str] = []
        self.lost: frozenset[str] = frozenset()
        self._files: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Checkpoint:
        """Open all shards and read their headers."""
        with ExitStack() as stack:
            self._stack = stack
            index = self._index()
            for file in self._shards(index):
                self._open(file)
            self.lost = frozenset(name for name, file in index.items() if file not in self._files)
            self._compare(index)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the files."""
        self._files.clear()
        self._stack.close()

    def read(self, name: str) -> Tensor:
        """Return a tensor as it is stored, on the CPU."""
        tensor: Tensor = self._files[self.tensors[name].file].get_tensor(name)
        return tensor

    def _index(self) -> dict[str, str]:
        """Return the index's {tensor: file}; empty without one, or beside a whole file."""
        path = self.folder / INDEX
        if (self.folder / WHOLE).exists() or not path.exists():
            return {}
        try:
            names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            self.problems.append(f"{INDEX} cannot be read: {type(error).__name__}: {error}")
            return {}
        if not isinstance(names, dict) or not all(isinstance(f, str) for f in names.values()):
            self.problems.append(f"{INDEX}: weight_map is not a table of file names")
            return {}
        return names

    def _shards(self, index: dict[str, str]) -> list[str]:
        if (self.folder / WHOLE).exists():
            return [WHOLE]
        shards = sorted(set(index.values()))
        present = []
        for file in shards:
            if Path(file).name != file:
                self.problems.append(f"{INDEX} names {file!r}, which is not a plain file name")
            elif not (self.folder / file).is_file():
                self.problems.append(f"{INDEX} names {file}, which is not there")
            else:
                present.append(file)
        if not shards and not self.problems:
            self.problems.append(self._why_none())
        return present

    def _why_none(self) -> str:
        names = sorted(path.name for path in self.folder.iterdir())
        loose = [name for name in names if name.endswith(".safetensors")]
        pickles = [name for name in names if name.endswith(_PICKLES)]
        if loose:
            return f"{', '.join(loose)} without {INDEX}, which says what belongs together"
        if pickles:
            return (
                f"only pickled weights ({', '.join(pickles)}), which are not read: "
                "unpickling runs whatever code they hold"
            )
        return f"neither {WHOLE} nor {INDEX}"

    def _open(self, file: str) -> None:
        path = self.folder / file
        try:
            handle = self._stack.enter_context(safe_open(str(path), framework="pt", device="cpu"))
        except (SafetensorError, OSError) as error:
            with path.open("rb") as raw:
                pointer = raw.read(32).startswith(b"version https://git-lfs")
            why = "is a Git LFS pointer, not the file" if pointer else f"is damaged: {error}"
            self.problems.append(f"{file} ({path.stat().st_size} bytes) {why}")
            return
        self._files[file] = handle
        for name in handle.keys():  # noqa: SIM118 - a safe_open handle is not a mapping
            header = handle.get_slice(name)
            if name in self.tensors:
                self.problems.append(
                    f"tensor {name} is in both {self.tensors[name].file} and {file}"
                )
            self.tensors[name] = TensorInfo(header.get_dtype(), tuple(header.get_shape()), file)

    def _compare(self, index: dict[str, str]) -> None:
        """Note where the index disagrees with the shards that could be opened."""
        for name, file in index.items():
            if file in self._files and (
                name not in self.tensors or self.tensors[name].file != file
            ):
                self.problems.append(f"{INDEX} puts {name} into {file}, where it is not")
