"""The checkable tasks: answers are right by an independent check, and nothing held out leaks."""

from __future__ import annotations

import ast
import datetime
import json
import re
import sqlite3
from pathlib import Path

import pytest

from workbench.data.task_writers import Example
from workbench.data.tasks import (
    TASKS,
    exact_matches,
    is_held_out,
    load_held_out,
    task_examples,
    write_held_out,
)
from workbench.errors import InvalidValue


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_examples_and_none_is_held_out(name: str) -> None:
    examples = task_examples(name, 300, seed=3)
    assert examples == task_examples(name, 300, seed=3) != task_examples(name, 300, seed=4)
    assert not any(is_held_out(example.prompt) for example in examples)
    assert all(is_held_out(e.prompt) for e in task_examples(name, 50, seed=3, held_out=True))


@pytest.mark.parametrize("name", TASKS)
def test_what_ships_is_what_the_code_writes(name: str, tmp_path: Path) -> None:
    shipped = load_held_out(name)
    write_held_out(tmp_path)
    assert shipped == load_held_out(name, tmp_path)
    assert len({example.prompt for example in shipped}) == 200
    assert all(is_held_out(example.prompt) for example in shipped)


@pytest.mark.parametrize("name", TASKS)
def test_a_prompt_has_one_answer(name: str) -> None:
    answers: dict[str, str] = {}
    for example in task_examples(name, 3000):
        assert answers.setdefault(example.prompt, example.answer) == example.answer


def test_answers_are_right() -> None:
    checks = {
        "sql": check_sql,
        "json": check_record,
        "arithmetic": check_sum,
        "dates": check_date,
        "pytest": check_test,
    }
    assert checks.keys() == TASKS.keys()
    for name, check in checks.items():
        for example in task_examples(name, 200, seed=9):
            check(example)


def check_sql(example: Example) -> None:
    """SQLite runs the query over the table that the prompt names."""
    schema = re.match(r"# (\w+\(.*\))\n", example.prompt)
    assert schema
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE TABLE {schema[1]}")
    connection.execute(example.answer)
    connection.close()


def check_record(example: Example) -> None:
    """The record parses, and every value is in the sentence."""
    values = json.loads(example.answer)
    assert list(values) == ["name", "age", "city", "job"]
    assert all(str(value) in example.prompt for value in values.values())


def check_sum(example: Example) -> None:
    """The numbers, read from the prompt, give the answer."""
    a, sign, b = example.prompt[2:].split()
    assert int(example.answer) == int(a) + int(b) * (1 if sign == "+" else -1)


def check_date(example: Example) -> None:
    """The date exists, and is the one of the prompt."""
    date = datetime.date.fromisoformat(example.answer)
    assert date.strftime("%B") in example.prompt
    assert {str(date.day), str(date.year)} <= set(re.findall(r"\d+", example.prompt))


def check_test(example: Example) -> None:
    """The test passes, calls what the prompt says, and fails for a function that does nothing."""
    space: dict[str, object] = {}
    exec(example.prompt + example.answer, space)
    [name] = [name for name in space if name.startswith("test_")]
    space[name]()  # type: ignore[operator]
    call = example.prompt.splitlines()[-1].removeprefix("# ")
    assert any(ast.unparse(n) == call for n in ast.walk(ast.parse(example.answer)) if is_call(n))
    space[name.removeprefix("test_")] = lambda *_: None
    with pytest.raises(AssertionError):
        space[name]()  # type: ignore[operator]


def is_call(node: ast.AST) -> bool:
    """Whether a node is a call."""
    return isinstance(node, ast.Call)


def test_exact_match_ignores_space_around_and_nothing_else() -> None:
    example = Example("# 1 + 1\n", "2")
    assert exact_matches([" 2\n", "2", "2.", "22", ""], [example] * 5) == [True, True, *[False] * 3]


def test_an_unknown_task_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"poetry.*sql"):
        task_examples("poetry", 1)
    with pytest.raises(InvalidValue, match=r"no file .*sql\.jsonl"):
        load_held_out("sql", tmp_path)
