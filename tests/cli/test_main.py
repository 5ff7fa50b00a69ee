"""The command line: what it takes, how it hands on, and how it ends."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.cli.main import main
from workbench.places import EMBEDDED_MODEL, repository_root


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[list[str]]]:
    """Return a function that puts a recording program in a module's place and returns its calls."""

    def replace(name: str) -> list[list[str]]:
        calls: list[list[str]] = []
        recorder = types.ModuleType(name)
        recorder.main = lambda arguments: calls.append(arguments) or 7
        parent, _, leaf = name.rpartition(".")
        monkeypatch.setitem(sys.modules, name, recorder)
        monkeypatch.setattr(f"{parent}.{leaf}", recorder, raising=False)
        return calls

    return replace


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (["bench", "cpu"], "workbench.bench.cpu"),
        (["bench", "scheduler"], "workbench.bench.scheduler"),
        (["bench", "recording"], "workbench.bench.recording"),
        (["train", "base"], "workbench.train.base"),
    ],
)
def test_a_program_gets_its_arguments_untouched(
    program: Callable[[str], list[list[str]]], command: list[str], module: str
) -> None:
    calls = program(module)
    rest = ["--steps", "3", "--help", "-x", "positional", "--", "--last"]
    assert main([*command, *rest]) == 7
    assert main(command) == 7
    assert calls == [rest, []]


@pytest.mark.parametrize("arguments", [["unknown"], ["bench"], ["bench", "unknown"]])
def test_what_it_does_not_know_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: workbench" in capsys.readouterr().err


def test_without_a_command_it_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "generate" in capsys.readouterr().err


def test_an_option_is_not_guessed_from_its_beginning() -> None:
    with pytest.raises(SystemExit):
        main(["--he"])


def test_a_users_mistake_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--notebook", str(tmp_path / "absent.ipynb")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: notebook=")
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "command",
    [[sys.executable, "-m", "workbench"], [str(Path(sys.executable).parent / "workbench")]],
    ids=["python -m workbench", "workbench"],
)
def test_both_names_show_every_subcommand(command: list[str], tmp_path: Path) -> None:
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for name in ("lab", "demo", "generate", "bench", "train", "doctor"):
        assert f"\n    {name} " in shown.stdout


def test_the_root_as_current_folder_hides_no_library(repository: Path) -> None:
    code = (
        "import datasets, transformers.utils as u;"
        "print(datasets.Dataset, u.is_datasets_available())"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=repository
    )
    assert seen.returncode == 0, seen.stderr
    assert seen.stdout.split()[-1] == "True"


@pytest.mark.slow
@pytest.mark.skipif(
    not (repository_root() / EMBEDDED_MODEL / "config.json").is_file(),
    reason="the embedded model adapters/tinypy/base is not here; a checkout with it lifts this",
)
def test_generate_prints_the_text_and_its_timing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "def add(a, b):", "import ", "--max-tokens", "8"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("def add(a, b):")
    assert "\nimport " in shown.out
    assert shown.err.count(" tokens (") == 2
    assert main(["generate", "x", "--max-tokens", "0"]) == 2


@pytest.mark.slow
@pytest.mark.skipif(
    not (repository_root() / EMBEDDED_MODEL / "config.json").is_file(),
    reason="the embedded model adapters/tinypy/base is not here; a checkout with it lifts this",
)
def test_generate_drafts_with_a_proposer(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "a = 1\na = 1\na = 1\n", "--max-tokens", "16", "--dtype", "float32"]
    assert main(words) == 0
    plain = capsys.readouterr()
    assert "a pass with a draft" not in plain.err
    assert main([*words, "--proposer", "ngram"]) == 0
    drafted = capsys.readouterr()
    assert drafted.out == plain.out
    assert "tokens a pass with a draft" in drafted.err
    assert main([*words, "--proposer", "nobody"]) == 2
