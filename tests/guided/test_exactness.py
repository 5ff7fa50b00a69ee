"""What a grammar accepts is what its constraint says: against jsonschema, `re` and by hand.

For each case both libraries either agree with the oracle or refuse. Where one is known to allow
less than the other, never more than the constraint, a test says so.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
from guiding import BOTH, accepts, byte_ids, compiled, random_text

from workbench.errors import RequestError
from workbench.guided import GrammarCompiler

OBJECT = {"type": "object"}
A = {"a": {"type": "integer"}}
TREE = {
    "$ref": "#/$defs/t",
    "$defs": {
        "t": {
            "type": "object",
            "properties": {
                "v": {"type": "integer"},
                "c": {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 2},
            },
            "required": ["v"],
            "additionalProperties": False,
        }
    },
}
# (schema, instances that tell a right reading from a wrong one)
SCHEMAS: list[tuple[Any, list[str]]] = [
    ({**OBJECT, "properties": A}, ['{"a":1}', '{"a":1,"b":2}', '{"a":1,"a":"x"}', "{}"]),
    (
        {**OBJECT, "properties": A, "required": ["a"], "additionalProperties": {"type": "string"}},
        ['{"a":1}', '{"a":1,"b":"2"}', '{"a":1,"b":2}', '{"b":"2"}'],
    ),
    ({**OBJECT, "properties": A, "additionalProperties": False}, ['{"a":1}', '{"b":1}', "{}"]),
    ({**OBJECT, "required": ["a"]}, ["{}", '{"a":1}', '{"b":1}']),
    ({"type": "integer", "multipleOf": 3}, ["3", "4"]),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, ["[1,2]", "[1,1]"]),
    ({"type": "array", "contains": {"const": 1}}, ["[1,2]", "[2]"]),
    ({**OBJECT, "patternProperties": {"^a": {"type": "integer"}}}, ['{"a":1}', '{"ab":"x"}']),
    ({**OBJECT, "propertyNames": {"pattern": "^a"}}, ['{"a":1}', '{"b":1}']),
    ({"not": {"type": "integer"}}, ["1", '"x"']),
    ({"if": {"type": "integer"}, "then": {"minimum": 3}}, ["1", "4"]),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ["1", "1.5"]),
    ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"a"', "null"]),
    ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, ["1", "4"]),
    ({"allOf": [{"type": "integer", "minimum": 3}]}, ["1", "4"]),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ["1", "null", '"x"']),
    (
        {**OBJECT, "properties": A, "anyOf": [{"required": ["b"]}, {"required": ["c"]}]},
        ['{"a":1}', '{"a":1,"b":2}'],
    ),
    ({"$ref": "#/$defs/x", "minimum": 5, "$defs": {"x": {"type": "integer"}}}, ["1", "7"]),
    ({"$ref": "#/definitions/x", "definitions": {"x": {"type": "integer"}}}, ["1", '"x"']),
    ({"type": "integer", "minimum": -3, "maximum": 110}, ["-4", "-3", "0", "110", "111", "007"]),
    ({"type": "integer", "exclusiveMinimum": 3}, ["3", "4", "-5"]),
    ({"type": "number", "minimum": 0.5, "exclusiveMaximum": 1}, ["0.4", "0.5", "1", "0.99"]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"a"', '"ab"', '"日本語"', '"abcd"']),
    ({"type": "string", "pattern": "^a+b$"}, ['"aab"', '"xaab"']),
    ({"type": "string", "pattern": "ab"}, ['"ab"', '"xabx"', '"x"']),
    ({"type": "string", "pattern": "^a.b$"}, ['"acb"', '"a\\nb"', '"ab"']),
    ({"type": "string", "pattern": "^a+$", "maxLength": 2}, ['"aa"', '"aaa"']),
    ({"enum": ["a", 1, None, {"b": [1]}]}, ['"a"', "1", "null", '{"b":[1]}', "2"]),
    ({"type": "string", "enum": ["a", 1]}, ['"a"', "1"]),
    ({"const": {"a": [1, None]}}, ['{"a":[1,null]}', '{"a":[1]}']),
    ({**OBJECT, "maxProperties": 1, "additionalProperties": True}, ["{}", '{"a":1}']),
    ({**OBJECT, "minProperties": 1}, ["{}", '{"a":1}', '{"a":1,"b":2}']),
    ({**OBJECT, "properties": A, "dependentRequired": {"a": ["b"]}}, ['{"a":1}', '{"a":1,"b":1}']),
    (
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        ["[1]", "[1,2]", "[1,2,3,4]"],
    ),
    ({"type": "array", "prefixItems": [A["a"]]}, ["[]", "[1]", '[1,"x"]', '["x"]']),
    (
        {"type": "array", "prefixItems": [A["a"]], "items": {"type": "string"}},
        ["[]", "[1]", '[1,"x"]', "[1,2]"],
    ),
    ({"type": "array", "prefixItems": [A["a"]], "items": False}, ["[1]", "[1,2]"]),
    ({**OBJECT, "properties": A, "unevaluatedProperties": False}, ['{"a":1}', '{"b":1}']),
    ({"type": ["integer", "null"]}, ["1", "null", '"x"']),
    ({"properties": A}, ['{"a":1}', '{"a":"x"}', "3"]),
    ({"minimum": 3}, ["2", "4", '"x"']),
    ({**OBJECT, "properties": {"a": False}}, ["{}", '{"a":1}']),
    (True, ["1", "{}", '"x"', "[1]"]),
    (TREE, ['{"v":1,"c":[{"v":2}]}', '{"c":[]}', '{"v":1}']),
    ({"type": "boolean"}, ["true", "True", "null"]),
    ({"type": "number"}, ["1", "-1.5", "1e2", "01", "1.", ".5"]),
    ({"type": "integer", "title": "t", "x-order": 3}, ["1", '"x"']),
]


def instance(text: str) -> Any:
    """Return what a JSON text means; NotImplemented where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return NotImplemented


def valid(schema: Any, text: str) -> bool:
    """Whether a text is an instance, as jsonschema sees it."""
    value = instance(text)
    check = jsonschema.Draft202012Validator(schema).is_valid
    return value is not NotImplemented and check(value)


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("case", SCHEMAS, ids=lambda c: json.dumps(c[0])[:60])
def test_schemas_are_enforced_or_refused(
    compiler: GrammarCompiler, backend: str, case: tuple[Any, list[str]]
) -> None:
    schema, texts = case
    if isinstance(schema, bool):
        schema = {"anyOf": [schema]} if backend == "llguidance" else {}
    try:
        grammar = compiled(compiler, backend, json=schema)
    except RequestError:
        return  # which ones is the business of `test_auto_takes_…` and of test_bad_input.py
    found = {text: accepts(compiler, grammar, text) for text in texts}
    assert found == {text: valid(schema, text) for text in texts}


def test_auto_takes_every_schema_that_some_library_enforces(compiler: GrammarCompiler) -> None:
    refused = []
    for schema, _ in SCHEMAS:
        try:
            compiled(compiler, json=schema if isinstance(schema, dict) else {})
        except RequestError:
            refused.append(schema)
    keywords = {key for schema in refused for key in schema}
    assert keywords <= {
        *("uniqueItems", "contains", "propertyNames", "not", "if", "then", "dependentRequired"),
        *("unevaluatedProperties", "oneOf", "type", "items", "properties"),
    }
    assert len(refused) == 8


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("case", SCHEMAS, ids=lambda c: json.dumps(c[0])[:60])
def test_random_texts_are_valid(
    compiler: GrammarCompiler, backend: str, case: tuple[Any, list[str]]
) -> None:
    schema = case[0] if isinstance(case[0], dict) else {}
    try:
        grammar = compiled(compiler, backend, json=schema, max_whitespace=1)
    except RequestError:
        return
    chance = random.Random(json.dumps(schema))
    for _ in range(5):
        text = random_text(compiler, grammar.start(), chance, 60)
        # One that has not ended in time is no instance yet; nothing is said of it.
        assert text is None or valid(schema, text.decode()), text


@pytest.mark.parametrize("backend", BOTH)
def test_whitespace_is_bounded(compiler: GrammarCompiler, backend: str) -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    for limit, allowed in ((None, 30), (0, 0), (1, 1), (3, 3)):
        grammar = compiled(compiler, backend, json=schema, max_whitespace=limit)
        for count in (0, 1, 3, 4, 30):
            blanks = " " * count
            text = f"[{blanks}1{blanks},{blanks}2{blanks}]"
            assert accepts(compiler, grammar, text) == (count <= allowed), (limit, count)
        assert accepts(compiler, grammar, "[\n1]") == (allowed > 0)


REGEXES: list[tuple[str, list[str]]] = [
    (r"a.b", ["acb", "a\nb", "aéb"]),
    (r"\d+", ["12", "a"]),
    (r"\w+", ["ab_1", "-"]),
    (r"\s", [" ", "\n", "a"]),
    (r"\W", ["é", "-"]),
    (r"\D\S", ["aé", "1a", "a "]),
    (r"[^a]", ["b", "é", "\n", "a"]),
    (r"[^\d]", ["b", "٣", "1"]),
    (r"^ab$", ["ab", "aab"]),
    (r"a^b", ["ab", "a^b"]),
    (r"a$b", ["ab", "a$b"]),
    (r"(?:a|b){2,3}", ["ab", "aba", "a", "abab"]),
    (r"a*?b", ["aab", "b", "a"]),
    (r"\u00e9\x41", ["éA", "eA"]),
    (r"[а-я]+", ["привет", "abc"]),  # noqa: RUF001
    (r"日本+", ["日本本", "日"]),
    (r"😀{2}", ["😀😀", "😀"]),
    (r"[\w.+-]+@[a-z]+\.(com|org)", ["a.b@x.org", "@x.com", "a@x.net"]),
    (r"", ["", "a"]),
    (r"a|", ["", "a", "b"]),
    (r"\.\/\-", ["./-", "a/-"]),
    (r"[\s\S]", ["\n", "é", "ab"]),
    ("a\nb", ["a\nb", "ab"]),
    (r'"\\', ['"\\', '"']),
    (r"(?i)ab", ["AB", "ab", "a"]),
    (r"[[:alpha:]]", ["a", ":"]),
    (r"a++b", ["aab", "b"]),
    (r"(?s).", ["\n", "a"]),
    (r"\bab\b", ["ab"]),
    (r"(?=a)a", ["a"]),
    (r"(?!b)a", ["a"]),
    (r"(?<=a)b", ["b"]),
    (r"(a)\1", ["aa", "a"]),
    (r"\h", ["h"]),
    (r"\Aab\Z", ["ab"]),
]
# Readings that differ from `re` by the library's documented dialect: POSIX classes.
DIALECT = {("llguidance", r"[[:alpha:]]")}


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("case", REGEXES, ids=lambda c: repr(c[0]))
@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
def test_regular_expressions_match_whole_texts(
    compiler: GrammarCompiler, backend: str, case: tuple[str, list[str]]
) -> None:
    pattern, texts = case
    try:
        grammar = compiled(compiler, backend, regex=pattern)
    except RequestError:
        return  # which ones is the business of `test_auto_takes_…` and of test_bad_input.py
    if (backend, pattern) in DIALECT:
        return
    found = {text: accepts(compiler, grammar, text) for text in texts}
    assert found == {text: re.fullmatch(pattern, text) is not None for text in texts}
    chance = random.Random(pattern)
    for _ in range(4):
        text = random_text(compiler, grammar.start(), chance, 40)
        if text is not None:
            assert re.fullmatch(pattern, text.decode()), text


@pytest.mark.parametrize("backend", BOTH)
def test_choices_are_exact(compiler: GrammarCompiler, backend: str) -> None:
    choices = [
        "yes",
        "no",
        "yesterday",
        'naïve\n"café"\\',
        "日本",
        "a|b",
        "[x]*",
        " lead",
        "",
        "😀",
    ]
    grammar = compiled(compiler, backend, choice=choices)
    for text in choices:
        assert accepts(compiler, grammar, text)
    for text in ("y", "yesno", "a", "x", "xx", "lead", " ", "naïve", "Yes"):
        assert not accepts(compiler, grammar, text)
    chance = random.Random(0)
    seen = {random_text(compiler, grammar.start(), chance) for _ in range(60)}
    assert seen <= {text.encode() for text in choices}
    assert len(seen) >= 4


GRAMMARS: list[tuple[str, list[str], list[str]]] = [
    ('root ::= "a" root "b" | ""', ["", "ab", "aaabbb"], ["a", "aab", "ba"]),
    (
        'root ::= sum\nsum ::= sum "+" term | term\nterm ::= [0-9]+ | "(" sum ")"',
        ["1", "1+2+(3+45)"],
        ["", "+1", "(1", "1+"],
    ),
    ('root ::= "\\u00e9ab" [\\u00e0-\\u00ff]', ["éabç"], ["eabç", "éabc", "\ue9abç"]),
    ('root ::= "x"{2,3} ("y" | "z")?', ["xx", "xxxz"], ["x", "xxyy"]),
    ('root ::= root root | "a"', ["a", "aaaa"], ["", "b"]),
    ('root ::= [^"\\n]+ # a comment\n', ["héllo"], ["", 'a"b']),
]


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("case", GRAMMARS, ids=lambda c: c[0][:40])
def test_grammars_accept_what_they_derive(
    compiler: GrammarCompiler, backend: str, case: tuple[str, list[str], list[str]]
) -> None:
    source, good, bad = case
    try:
        grammar = compiled(compiler, backend, grammar=source)
    except RequestError:
        assert backend == "llguidance"
        return
    assert [text for text in good if not accepts(compiler, grammar, text)] == []
    assert [text for text in bad if accepts(compiler, grammar, text)] == []


TAGS = {
    "structures": [
        {
            "begin": "<f=one>",
            "schema": {**OBJECT, "properties": A, "required": ["a"]},
            "end": "</f>",
        },
        {"begin": "<f=two>", "schema": {"type": "integer"}, "end": "</f>"},
    ],
    "triggers": ["<f="],
}


@pytest.mark.parametrize("backend", BOTH)
def test_structural_tags_constrain_only_what_they_enclose(
    compiler: GrammarCompiler, backend: str
) -> None:
    grammar = compiled(compiler, backend, structural_tag=TAGS)
    for text in ("", "free < text", 'x<f=two>12</f>y<f=one>{"a":1}</f>z', "naïve\n"):
        assert accepts(compiler, grammar, text), text
    for text in ("<f=", "<f=three>", "<f=two>x</f>", "<f=two>12", '<f=one>{"a":"x"}</f>'):
        assert not accepts(compiler, grammar, text), text


AGREE: list[dict[str, Any]] = [
    {"json": {**OBJECT, "properties": A, "required": ["a"], "additionalProperties": False}},
    {"json": TREE},
    {"json": {"type": "array", "items": {"enum": ["x", 1, None]}, "maxItems": 4}},
    {"json": {"type": "integer", "minimum": 3, "maximum": 250}},
    {"regex": r"[a-f0-9]{4}(-[a-f0-9]{2}){0,3}"},
    {"regex": r"(да|нет|日本)+"},
    {"choice": ["alpha", "alphabet", "beta"]},
]


@pytest.mark.parametrize("constraint", AGREE, ids=str)
def test_the_libraries_agree_token_by_token(
    compiler: GrammarCompiler, constraint: dict[str, Any]
) -> None:
    """Their masks are equal but for two cases: where one text must follow, llguidance allows only
    the tokens that the tokenizer writes it with; and xgrammar has no integer -0."""
    grammars = [compiled(compiler, b, **constraint, **_compact(constraint)) for b in BOTH]
    tokens, chance, steps = compiler.vocabulary.tokens, random.Random(5), 0
    for _ in range(8):
        exact, canonical = (grammar.start() for grammar in grammars)
        text = b""
        for _ in range(25):
            more, fewer = set(exact.allowed()), set(canonical.allowed())
            steps += 1
            if "json" in constraint and text.endswith(b"-"):
                fewer -= {i for i in fewer if tokens[i] == b"0"}
            if more != fewer:
                assert len(fewer) == 1
                assert fewer < more
                # Only other spellings of one text were left out.
                (whole,) = (tokens[i] for i in fewer)
                assert all(whole.startswith(tokens[i]) for i in more if len(tokens[i]) < len(whole))
            token_id = chance.choice(sorted(fewer & more))
            exact.accept(token_id)
            canonical.accept(token_id)
            assert exact.accepting == canonical.accepting
            if token_id in compiler.vocabulary.eos_token_ids:
                break
            text += tokens[token_id]
    assert steps > 15


def _compact(constraint: dict[str, Any]) -> dict[str, int]:
    return {"max_whitespace": 0} if "json" in constraint else {}


def test_known_difference_in_strings(compiler: GrammarCompiler) -> None:
    """JSON allows DEL in a string; llguidance does not write it. No other single byte differs."""
    both = []
    for backend in BOTH:
        guide = compiled(compiler, backend, json={"type": "string"}, max_whitespace=0).start()
        guide.accept(byte_ids(compiler)[ord('"')])
        both.append({b for b, i in byte_ids(compiler).items() if i in set(guide.allowed())})
    assert both[0] - both[1] == {0x7F}
    assert both[1] - both[0] == set()
