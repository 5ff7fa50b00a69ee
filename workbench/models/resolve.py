"""From what a user calls a model to the folder that holds it.

Tried in this order: an embedded model's name, a local folder, a hub id. The network is used only
for a hub id, and only files that are data are fetched.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from workbench.errors import ConfigError
from workbench.places import ADAPTERS, repository_root

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")


def resolve_model(name: str | Path) -> Path:
    """Return the folder of a model: embedded (`tinypy`), local, or from the hub (`org/name`).

    Raises `ConfigError` naming all that was tried, and the embedded models.
    """
    text = os.fspath(name)
    tried = []
    if re.fullmatch(r"\w[\w.-]*", text):
        folder = _adapters() / text / "base"
        if (folder / "config.json").is_file():
            return folder
        tried.append(f"no embedded model at {folder}")
    local = Path(text).expanduser()
    if (local / "config.json").is_file():
        return local
    if local.is_dir():
        tried.append(f"the folder {local.resolve()} has no config.json")
    elif local.exists():
        tried.append(f"{local.resolve()} is a file; give the folder it lies in")
    else:
        tried.append(f"no folder {local.resolve()}")
        if isinstance(name, str) and _HUB_ID.fullmatch(text):
            fetched, problem = _from_hub(text)
            if fetched is not None:
                return fetched
            tried.append(problem)
    known = ", ".join(embedded_models()) or "none"
    fix = f"Give a checkpoint folder, a hub id, or an embedded model ({known})."
    raise ConfigError("model", text, "; ".join(tried), fix)


def resolve_attached(name: str | Path, model: str) -> Path:
    """Return the folder of what attaches to a model: `adapters/<model>/<name>`, or a local folder.

    Raises `ConfigError` naming what was tried, and what there is for this model.
    """
    text = os.fspath(name)
    around = _adapters() / model
    places = [Path(text).expanduser()]
    if re.fullmatch(r"\w[\w.-]*", text) and re.fullmatch(r"\w[\w.-]*", model):
        places.insert(0, around / text)
    for place in places:
        if (place / "config.json").is_file():
            return place
    tried = "; ".join(f"no config.json in {place.resolve()}" for place in places)
    known = ", ".join(attached_names(model)) or "nothing yet"
    fix = f"Give a folder, or what ships for {model!r} ({known})."
    raise ConfigError("proposer", text, tried, fix)


def attached_names(model: str) -> list[str]:
    """Return the names of what ships for a model beside its base: heads and draft models."""
    if not re.fullmatch(r"\w[\w.-]*", model):
        return []
    found = (_adapters() / model).glob("*/config.json")
    return sorted(path.parent.name for path in found if path.parent.name != "base")


def shipped_loras(model: str) -> str:
    """Return which LoRA adapters ship for a model, and where, as a sentence; empty if none do."""
    if not re.fullmatch(r"\w[\w.-]*", model):
        return ""
    folder = _adapters() / model / "lora"
    names = sorted(path.parent.name for path in folder.glob("*/adapter_config.json"))
    return f"In {folder} are {', '.join(names)}." if names else ""


def embedded_models() -> list[str]:
    """Return the names under `adapters/` that hold a base model."""
    return sorted(path.parent.parent.name for path in _adapters().glob("*/base/config.json"))


def _adapters() -> Path:
    """`adapters/` of WORKBENCH_HOME, else of the repository."""
    home = os.environ.get("WORKBENCH_HOME")
    return (Path(home) if home else repository_root()) / ADAPTERS


def _from_hub(hub_id: str) -> tuple[Path | None, str]:
    """Return (folder, "") or (None, why not)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except (OSError, EntryNotFoundError, HFValidationError) as error:  # HTTP errors are OSErrors
        line = next(iter(str(error).splitlines()), "")
        return None, f"the hub gave no {hub_id} ({type(error).__name__}: {line})"
    if not (folder / "config.json").is_file():
        return None, f"{hub_id} on the hub has no config.json"
    return folder, ""
