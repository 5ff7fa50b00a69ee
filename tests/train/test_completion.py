"""The cut at the last complete statement, on completions that end in the middle of something."""

import pytest

from workbench.train.completion import cut_at_last_statement, judge


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1\ny = (2,\n", "x = 1\n"),
        ("def f():\n    return 1\n\n\ndef g(a", "def f():\n    return 1\n"),
        ('def f():\n    x = """open\n    text', ""),
        (
            "def f(n):\n    if n:\n        return 1\n    els",
            "def f(n):\n    if n:\n        return 1\n    els\n",
        ),
        (
            "def f(n):\n    if n:\n        return 1\n    else",
            "def f(n):\n    if n:\n        return 1\n",
        ),
        ("def f(:\n", ""),
        ("", ""),
    ],
)
def test_cut(text, program):
    assert cut_at_last_statement(text) == program


def test_a_prompt_alone_is_no_valid_completion():
    assert not judge("import json\n\n\ndef f(path):\n", "    with open(", False).valid
    assert judge("def f(path):\n", "    return path\n    x = (", False).valid
