"""Documents: functions, classes and methods stand alone."""

import ast

from workbench.data.documents import definitions, digest_of

TEXT = '''import functools


@functools.lru_cache
def first(value):
    """Return the value, with one added to it, over and over again."""
    return value + 1


def stub(value):
    """Nothing but a long docstring is in here, so that this is no document."""
    ...


class Shelf:
    """Holds books, as many as fit on it."""

    def __init__(self, room):
        self.books = []
        self.room = room

    def put(self, book):
        if len(self.books) >= self.room:
            raise ValueError("the shelf is full, take one away first")
        self.books.append(book)
'''


def test_definitions_carry_decorators_and_skip_stubs():
    found = definitions(TEXT)
    kinds = [document.kind for document in found]
    assert kinds[:2] == ["function", "class"]
    assert found[0].text.startswith("@functools.lru_cache\ndef first")
    assert not any("def stub" in document.text for document in found)


def test_every_document_is_a_program_at_column_zero():
    methods = "".join(
        f"    def method_{n}(self, value):\n        result = value * {n} + self.offset\n"
        f"        return result if result > 0 else None\n\n"
        for n in range(100)
    )
    found = definitions(TEXT + "\n\nclass Many:\n" + methods)
    taken = [document for document in found if document.kind == "method"]
    assert 5 < len(taken) < 70, "a large class gives a share of its methods"
    for document in found:
        ast.parse(document.text)
        assert not document.text[0].isspace()
        assert document.text.endswith("\n")
        assert not document.text.endswith("\n\n")


def test_the_digest_ignores_whitespace_only():
    assert digest_of("def f(x):\n    return x") == digest_of("def f(x):\n  return  x\n")
    assert digest_of("def f(x):\n    return x") != digest_of("def f(x):\n    return y")
