"""`workbench lab`: the command it becomes. That it serves is tested in tests/browser/."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from workbench.cli import lab
from workbench.cli.main import main


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """Keep the process from being replaced; record the command and environment instead."""
    calls: list[tuple[list[str], dict[str, str]]] = []

    def record(program: str, command: list[str], environment: dict[str, str]) -> None:
        assert program == command[0] == sys.executable
        calls.append((command, environment))
        raise SystemExit(0)

    monkeypatch.setattr(lab.os, "execve", record)
    return calls


def test_it_serves_the_notebooks_folder_on_loopback_with_a_token(
    tmp_path: Path, started: list[tuple[list[str], dict[str, str]]]
) -> None:
    notebook = tmp_path / "my own.ipynb"
    notebook.touch()
    with pytest.raises(SystemExit):
        main(["lab", "--no-browser", "--notebook", str(notebook), "--jupyter=--debug"])
    ((command, environment),) = started
    assert "--LabApp.default_url=/lab/tree/my%20own.ipynb" in command
    assert {"--ServerApp.ip=127.0.0.1", "--no-browser", "--debug"} <= set(command)
    assert f"--ServerApp.root_dir={tmp_path.resolve()}" in command
    assert not [option for option in command if "token" in option.lower()]
    assert environment["JUPYTER_PREFER_ENV_PATH"] == "1"


def test_a_browser_opens_unless_told_otherwise(tmp_path: Path) -> None:
    command = lab.lab_command(tmp_path / "n.ipynb", tmp_path, browser=True, port=9123)
    assert "--no-browser" not in command
    assert "--ServerApp.port=9123" in command


def test_a_notebook_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "--notebook", str(tmp_path / "absent.ipynb")]) == 2
    assert "no such file" in capsys.readouterr().err
