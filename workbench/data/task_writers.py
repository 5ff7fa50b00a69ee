"""The writers of the checkable tasks: from a source of chance to a prompt and its one right answer.

Each is a function of `random.Random` alone; `workbench.data.tasks` names them and splits what they
write. The words are few and the answers short, so that a model of some millions of parameters can
learn them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random

_TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "users": {"name": ("Ada", "Bob", "Eve", "Max"), "age": (), "city": ("Paris", "Rome", "Oslo")},
    "orders": {"item": ("book", "lamp", "chair"), "total": (), "status": ("open", "paid", "late")},
    "books": {"title": ("Dune", "Emma"), "pages": (), "author": ("Orwell", "Austen", "Woolf")},
    "cars": {"model": ("golf", "mini", "fiesta"), "price": (), "color": ("red", "blue", "black")},
    "cities": {"name": ("Paris", "Rome", "Oslo"), "size": (), "country": ("France", "Italy")},
    "songs": {"title": ("Yesterday", "Africa"), "length": (), "genre": ("rock", "jazz", "pop")},
    "players": {"name": ("Ada", "Bob", "Eve"), "score": (), "team": ("red", "blue", "green")},
    "products": {"name": ("pen", "cup", "bag"), "weight": (), "brand": ("Acme", "Nova", "Zen")},
}
_AGGREGATES = {"average": "AVG", "highest": "MAX", "lowest": "MIN", "total": "SUM"}
_COMPARISONS = {"above": ">", "below": "<", "equal to": "="}

_NAMES = ("Ada", "Bob", "Carl", "Dora", "Emil", "Frida", "Hugo", "Ida", "Jack", "Lena", "Max")
_CITIES = ("Paris", "Rome", "Oslo", "Berlin", "Madrid", "London", "Vienna", "Prague", "Dublin")
_JOBS = ("nurse", "baker", "pilot", "teacher", "driver", "painter", "doctor", "lawyer", "cook")
_SENTENCES = (
    "{name} is {age} years old, lives in {city} and works as a {job}.",
    "{name}, a {job} from {city}, is {age}.",
    "The {job} {name} ({age}) lives in {city}.",
    "In {city} lives {name}, who is {age} and a {job}.",
)

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DATES = ("{day} {month} {year}", "{month} {day}, {year}", "the {day}{th} of {month} {year}")

_FUNCTIONS = (
    ("add", "a, b", "a + b"),
    ("sub", "a, b", "a - b"),
    ("mul", "a, b", "a * b"),
    ("largest", "a, b", "max(a, b)"),
    ("smallest", "a, b", "min(a, b)"),
    ("double", "a", "a * 2"),
    ("next_one", "a", "a + 1"),
    ("is_small", "a", "a < 5"),
    ("is_even", "a", "a % 2 == 0"),
    ("same", "a, b", "a == b"),
    ("shout", "s", "s.upper()"),
    ("size", "s", "len(s)"),
    ("first", "s", "s[0]"),
    ("join", "s, t", "s + t"),
)
_WORDS = ("cat", "dog", "red", "sun", "tree", "fish", "blue", "house", "apple", "music")
_PREFIXES = ("", "get_", "my_", "do_", "calc_", "make_")


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, and the one text that is right behind it."""

    prompt: str
    answer: str


def sql(source: Random) -> Example:
    """A table and a question about it; the answer is one SELECT."""
    table = source.choice(tuple(_TABLES))
    columns = _TABLES[table]
    number = next(name for name, values in columns.items() if not values)
    column = source.choice(tuple(columns))
    asked, selected = source.choice(
        (
            (f"all {table}", "*"),
            (f"how many {table}", "COUNT(*)"),
            (f"the {column} of {table}", column),
            *((f"the {word} {number} of {table}", f"{f}({number})") for word, f in _aggregates()),
        )
    )
    question, query = asked, f"SELECT {selected} FROM {table}"
    if source.random() < 0.85:
        where = source.choice(tuple(columns))
        if columns[where]:
            value = source.choice(columns[where])
            said, condition = f"is {value}", f"= '{value}'"
        else:
            word, bound = source.choice(tuple(_COMPARISONS)), source.randrange(1, 100)
            said, condition = f"is {word} {bound}", f"{_COMPARISONS[word]} {bound}"
        question, query = f"{question} whose {where} {said}", f"{query} WHERE {where} {condition}"
    if "(" not in selected and source.random() < 0.4:
        down = source.random() < 0.5
        question += f", {'highest' if down else 'lowest'} {number} first"
        query += f" ORDER BY {number}{' DESC' if down else ''}"
    return Example(f"# {table}({', '.join(columns)})\n# {question}\n", query)


def record(source: Random) -> Example:
    """A sentence about a person; the answer is its JSON record."""
    person = {
        "name": source.choice(_NAMES),
        "age": source.randrange(18, 90),
        "city": source.choice(_CITIES),
        "job": source.choice(_JOBS),
    }
    return Example(f"# {source.choice(_SENTENCES).format(**person)}\n", json.dumps(person))


def arithmetic(source: Random) -> Example:
    """A sum or difference of numbers below 100; the answer is its value."""
    a, b = source.randrange(100), source.randrange(100)
    sign, value = source.choice((("+", a + b), ("-", a - b)))
    return Example(f"# {a} {sign} {b}\n", str(value))


def date(source: Random) -> Example:
    """A date in English; the answer is the ISO date."""
    day, month, year = source.randrange(1, 29), source.randrange(12), source.randrange(1900, 2100)
    written = source.choice(_DATES).format(
        day=day, month=_MONTHS[month], year=year, th=_ordinal(day)
    )
    return Example(f"# {written}\n", f"{year}-{month + 1:02}-{day:02}")


def unit_test(source: Random) -> Example:
    """A function and a call of it; the answer is a test as for pytest that asserts its value."""
    name, parameters, body = source.choice(_FUNCTIONS)
    name = source.choice(_PREFIXES) + name
    names = parameters.split(", ")
    is_text = names[0] == "s"
    given = [source.choice(_WORDS) if is_text else source.randrange(10) for _ in names]
    value = eval(body, {"len": len, "max": max, "min": min}, dict(zip(names, given, strict=True)))
    call = f"{name}({', '.join(map(repr, given))})"
    truth = f"{call} is {value}" if isinstance(value, bool) else f"{call} == {value!r}"
    return Example(
        f"def {name}({parameters}):\n    return {body}\n\n# {call}\n",
        f"def test_{name}():\n    assert {truth}",
    )


def _aggregates() -> tuple[tuple[str, str], ...]:
    return tuple(_AGGREGATES.items())


def _ordinal(day: int) -> str:
    if 10 < day < 20:
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
