"""Finding a model: embedded names, folders, hub ids; nothing else reaches for the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.errors import ConfigError
from workbench.models import resolve_model
from workbench.models.resolve import embedded_models, shipped_loras


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository root that holds the embedded models `tiny` and `other`."""
    for name in ("tiny", "other"):
        folder = tmp_path / "home" / "adapters" / name / "base"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (tmp_path / "home" / "adapters" / "no-base").mkdir()
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_an_embedded_name(home: Path) -> None:
    assert resolve_model("tiny") == home / "adapters" / "tiny" / "base"
    assert embedded_models() == ["other", "tiny"]


def test_the_repository_is_where_embedded_models_lie(
    monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.delenv("WORKBENCH_HOME", raising=False)
    with pytest.raises(ConfigError) as caught:
        resolve_model("no-such-model")
    assert str(repository / "adapters" / "no-such-model" / "base") in caught.value.problem


def test_a_local_folder(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "org" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert resolve_model(folder) == folder
    assert resolve_model(str(folder)) == folder
    assert resolve_model("org/mine") == Path("org/mine")  # before any hub id


def test_an_unknown_name_says_what_was_tried_and_what_there_is(home: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_model("tinny")
    assert caught.value.value == "tinny"
    assert f"no embedded model at {home / 'adapters' / 'tinny' / 'base'}" in caught.value.problem
    assert f"no folder {Path('tinny').resolve()}" in caught.value.problem
    assert "(other, tiny)" in caught.value.fix


def test_a_name_cannot_leave_the_adapters_folder(home: Path) -> None:
    (home / "base").mkdir()
    (home / "base" / "config.json").write_text("{}")
    with pytest.raises(ConfigError):
        resolve_model("..")


def test_a_folder_without_config_and_a_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        resolve_model(tmp_path / "empty")
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ConfigError, match="is a file; give the folder it lies in"):
        resolve_model(tmp_path / "model.safetensors")


HUB_TRIAL = """
import sys
from workbench.errors import ConfigError
from workbench.models.resolve import resolve_model

print(resolve_model("org/cached"))
for name in ("org/absent", "org/cached/deeper", "./org/cached"):
    try:
        resolve_model(name)
    except ConfigError as error:
        print(name, "the hub gave" in error.problem)
"""


def test_a_hub_id_is_found_in_the_hubs_cache(tmp_path: Path) -> None:
    """The real library, told to stay offline: its cache answers, or a typed error does."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--org--cached"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    done = subprocess.run(
        [sys.executable, "-c", HUB_TRIAL],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        str(snapshot),
        "org/absent True",
        "org/cached/deeper False",
        "./org/cached False",
    ]


def test_adapters_that_ship_are_named(home: Path) -> None:
    for name in ("sql", "json"):
        folder = home / "adapters" / "tiny" / "lora" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
    assert shipped_loras("tiny") == f"In {home / 'adapters' / 'tiny' / 'lora'} are json, sql."
    assert shipped_loras("other") == shipped_loras("/tmp/elsewhere") == ""
