"""Tasks whose answers a program can check: what the adapters that ship are trained and judged on.

    examples = task_examples("sql", 1000, seed=0)   # to train on
    held_out = load_held_out("sql")                 # datasets/lora/sql.jsonl, 200 of them

Examples are written by code, as many as wanted. Which of them are held out is a rule over the
prompt's text (a hash), so that no training run anywhere can have seen one. `python -m
workbench.data.tasks` writes the held-out files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from workbench.data.holdout import stable_hash
from workbench.data.task_writers import Example, arithmetic, date, record, sql, unit_test
from workbench.errors import InvalidValue
from workbench.places import DATASETS, repository_root

_HELD_OUT = 16  # one prompt in so many
_COUNT = 200


@dataclass(frozen=True, slots=True)
class Task:
    """A task: what writes its examples, and where an answer ends if the model does not end it."""

    name: str
    about: str
    write: Callable[[Random], Example]
    stop: str = "\n"
    max_tokens: int = 48


TASKS = {
    task.name: task
    for task in (
        Task("sql", "one SELECT over a small table, from a question in English", sql),
        Task("json", "a person's JSON record, from a sentence", record),
        Task("arithmetic", "sums and differences of numbers below 100", arithmetic, max_tokens=8),
        Task("dates", "ISO dates, from English ones", date, max_tokens=16),
        Task("pytest", "a unit test of a small function for given arguments", unit_test, "\n\n"),
    )
}


def get_task(name: str) -> Task:
    """Return the task of a name; raises `InvalidValue` if there is none."""
    if name not in TASKS:
        raise InvalidValue("task", name, "no such task", f"Known: {', '.join(TASKS)}.")
    return TASKS[name]


def task_examples(name: str, count: int, seed: int = 0, *, held_out: bool = False) -> list[Example]:
    """Return `count` examples of a task, which may repeat: those to train on, or those held out.

    The same arguments give the same examples on any machine. Raises `InvalidValue` for an unknown
    task.
    """
    stream = _stream(get_task(name), seed, held_out)
    return [next(stream) for _ in range(count)]


def load_held_out(name: str, root: Path | None = None) -> list[Example]:
    """Return the examples of `datasets/lora/<name>.jsonl`: distinct, and never trained on.

    `root` is the folder that holds `datasets`; by default the repository of this package.
    Raises `InvalidValue` for an unknown task, or a missing file.
    """
    task = get_task(name)
    path = held_out_path(task.name, root)
    if not path.is_file():
        fix = "Run `python -m workbench.data.tasks`, or pass root=."
        raise InvalidValue("task", name, f"there is no file {path}", fix)
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Example(**json.loads(line)) for line in lines if line]


def held_out_path(name: str, root: Path | None = None) -> Path:
    """Return where a task's held-out examples lie."""
    return (root or repository_root()) / DATASETS / "lora" / f"{name}.jsonl"


def exact_matches(texts: Sequence[str], examples: Sequence[Example]) -> list[bool]:
    """Return which texts are the answers of their examples; white space around them is ignored."""
    pairs = zip(texts, examples, strict=True)
    return [text.strip() == example.answer for text, example in pairs]


def is_held_out(prompt: str) -> bool:
    """Whether a task's example with this prompt is kept from training."""
    return stable_hash(prompt) % _HELD_OUT == 0


def _stream(task: Task, seed: int, held_out: bool) -> Iterator[Example]:
    source = Random(f"{task.name}-{seed}")
    while True:
        example = task.write(source)
        if is_held_out(example.prompt) == held_out:
            yield example


def write_held_out(root: Path, count: int = _COUNT) -> None:
    """Write `count` distinct held-out examples of every task below `root`."""
    for task in TASKS.values():
        found: dict[str, Example] = {}
        for example in _stream(task, 0, held_out=True):
            found[example.prompt] = example
            if len(found) == count:
                break
        path = held_out_path(task.name, root)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(asdict(example)) for example in found.values()]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Write the files that ship."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=repository_root())
    write_held_out(parser.parse_args().root)


if __name__ == "__main__":
    main()
