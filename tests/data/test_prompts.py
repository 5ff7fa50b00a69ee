"""The prompt suite: held out, distinct, and heads that can be gone on from."""

import ast
import json

import pytest

from workbench.data.holdout import STDLIB, is_held_out
from workbench.data.prompts import heads, load_prompts, main
from workbench.errors import InvalidValue


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    assert main(["--out", str(root / "datasets" / "prompts"), "--count", "64"]) == 0
    return root


def test_prompts_come_from_held_out_modules(suite):
    lines = (suite / "datasets" / "prompts" / "python.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 64
    assert all(is_held_out(STDLIB, row["source"]) for row in rows)
    assert {row["kind"] for row in rows} == {"function", "class", "module"}
    prompts = load_prompts("python", root=suite)
    assert prompts == [row["prompt"] for row in rows]
    assert len(set(prompts)) > 60


def test_heads_can_be_gone_on_from():
    text = (
        "import os\n\n\ndef one(a,\n        b):\n    # why\n    return a\n\n\n"
        'class Two:\n    """Doc."""\n\n    x = 1\n\n\ndef three(): return 3\n'
    )
    found = {prompt.id.split(":")[1]: prompt.prompt for prompt in heads("m", text)}
    assert found["one"] == "def one(a,\n        b):\n"
    assert found["Two"] == 'class Two:\n    """Doc."""\n'
    assert "three" not in found
    for head in (found["one"], found["Two"]):
        ast.parse(head + "    pass\n")


def test_an_unknown_suite_is_named(suite):
    with pytest.raises(InvalidValue, match="Suites there: python"):
        load_prompts("klingon", root=suite)
