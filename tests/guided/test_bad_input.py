"""Constraints that cannot be held to are refused with the library's reason, never bent."""

from __future__ import annotations

from typing import Any

import pytest
from guiding import BOTH, compiled

from workbench.errors import ConfigError, EngineClosed, RequestError
from workbench.guided import GrammarCompiler
from workbench.guided_params import GuidedDecodingParams
from workbench.models.tokenizer import Tokenizer

LOOP = {"$ref": "#/$defs/t", "$defs": {"t": {"type": "object", "required": ["c"]}}}
LOOP["$defs"]["t"]["properties"] = {"c": {"$ref": "#/$defs/t"}}
TRAP = {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/t"}], "$defs": LOOP["$defs"]}
TAG = {"type": "tag", "begin": "<a>", "content": {"type": "any_text"}, "end": "</a>"}


def tags(**changes: Any) -> dict[str, Any]:
    """Return a structural tag with one triggered tag, changed."""
    inner = {"type": "triggered_tags", "triggers": ["<a"], "tags": [TAG], **changes}
    return {"type": "structural_tag", "format": inner}


# Refused whatever the backend.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"json": {"type": "integr"}}, "invalid JSON schema"),
    ({"json": {"type": "object", "required": "a"}}, "invalid JSON schema"),
    ({"json": {"enum": []}}, "no finite value|empty"),
    ({"json": {"type": "integer", "enum": ["a"]}}, "incompatible|excludes"),
    ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "greater than maximum"),
    ({"json": {"$ref": "http://example.org/x.json"}}, "nothing is fetched"),
    ({"json": {"$ref": "#/$defs/missing"}}, "leads nowhere"),
    ({"json": {"$ref": "#"}}, "no finite value"),
    ({"json": LOOP}, "no finite value"),
    ({"json": TRAP}, "no finite value"),
    ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    ({"json": {"not": {"type": "null"}}}, "not"),
    ({"json": {"if": {"type": "null"}, "then": {}}}, "if"),
    ({"json": {"type": "string", "format": "frobs"}}, "frobs"),
    ({"json": {"type": "string", "pattern": "^(?=a)a$"}}, "[Ll]ook"),
    ({"json": {"type": "object", "required": ["a"], "additionalProperties": False}}, "'a'"),
    ({"regex": "(?=a)a"}, "[Ll]ook"),
    ({"regex": "(?<!b)a"}, "[Ll]ook"),
    ({"regex": r"(a)\1"}, "[Bb]ack-?reference|differently"),
    ({"regex": r"a\b"}, "lookaround|\\\\b"),
    ({"regex": "("}, "unclosed|not closed"),
    ({"regex": "[z-a]"}, "invalid|lower bound"),
    ({"regex": "a^b"}, "lookaround|middle"),
    ({"grammar": 'x ::= "a"'}, "root"),
    ({"grammar": ""}, "root"),
    ({"grammar": "root ::= y"}, "not defined"),
    ({"grammar": 'root ::= "a'}, "string literal"),
    ({"grammar": "root ::= root"}, "no text ever ends"),
    ({"grammar": 'root ::= "a" root'}, "no text ever ends"),
    ({"grammar": 'root ::= "a" | "b" x\nx ::= "c" x{2,3}'}, "no text ever ends"),
    ({"structural_tag": {"triggers": ["<a"]}}, "structures"),
    ({"structural_tag": {"type": "structural_tag"}}, "format"),
    ({"structural_tag": tags(typo=1)}, "typo"),
    ({"structural_tag": {"type": "structural_tag", "format": {"type": "odd"}}}, "odd"),
    ({"structural_tag": tags(tags=[{**TAG, "begin": {"type": "token", "token": 4}}])}, "token"),
]


@pytest.mark.parametrize("backend", ["auto", *BOTH])
@pytest.mark.parametrize(("constraint", "complaint"), REFUSED, ids=str)
def test_refused_by_all(
    compiler: GrammarCompiler, backend: str, constraint: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(RequestError, match=complaint) as caught:
        compiled(compiler, backend, **constraint)
    assert caught.value.field == "guided_decoding"
    assert caught.value.fix


# What xgrammar would take in silence, and llguidance takes rightly.
ROUTED: list[dict[str, Any]] = [
    {"json": {"allOf": [{"type": "integer"}, {"minimum": 3}]}},
    {"json": {"$ref": "#/$defs/x", "minimum": 5, "$defs": {"x": {"type": "integer"}}}},
    {"json": {"type": "string", "pattern": "^a+$", "maxLength": 2}},
    {"json": {"type": "string", "pattern": "ab"}},
    {"json": {"type": "object", "required": ["a"]}},
    {"json": {"minimum": 3}},
    {"json": {"type": "string", "enum": ["a", 1]}},
    {"regex": "a.b"},
    {"regex": r"\W"},
    {"regex": r"[^\d]"},
    {"regex": r"\p{L}+"},
    {"regex": r"(?i)yes"},
]


@pytest.mark.parametrize("constraint", ROUTED, ids=str)
def test_auto_goes_where_it_is_exact(compiler: GrammarCompiler, constraint: dict[str, Any]) -> None:
    assert compiled(compiler, **constraint).backend == "llguidance"
    with pytest.raises(RequestError, match="xgrammar"):
        compiled(compiler, "xgrammar", **constraint)


def test_auto_takes_xgrammar_where_it_alone_is_exact(compiler: GrammarCompiler) -> None:
    assert compiled(compiler, grammar='root ::= "a"').backend == "xgrammar"
    assert compiled(compiler, structural_tag=tags()).backend == "xgrammar"
    for extra in ({"at_least_one": True}, {"stop_after_first": True}, {"excludes": ["x"]}):
        assert compiled(compiler, structural_tag=tags(**extra)).backend == "xgrammar"
        with pytest.raises(RequestError, match=next(iter(extra))):
            compiled(compiler, "llguidance", structural_tag=tags(**extra))


def test_a_refusal_of_auto_gives_every_librarys_reason(compiler: GrammarCompiler) -> None:
    with pytest.raises(RequestError, match=r"llguidance: .*uniqueItems.*; xgrammar .*uniqueItems"):
        compiled(compiler, json={"type": "array", "uniqueItems": True})


def test_a_schema_inside_a_tag_is_held_to_the_same_standard(compiler: GrammarCompiler) -> None:
    schema = {"type": "array", "uniqueItems": True}
    structures = [{"begin": "<a>", "schema": schema, "end": "</a>"}]
    with pytest.raises(RequestError, match="uniqueItems"):
        compiled(compiler, structural_tag={"structures": structures, "triggers": ["<a"]})


def test_a_long_source_is_refused_without_a_worker(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, 4096, max_source_bytes=100)
    with pytest.raises(RequestError, match="101 bytes long"):
        compiler.compile(GuidedDecodingParams(regex="a" * 101)).result(0)
    assert compiler._client.process_id is None


@pytest.mark.parametrize(
    "settings",
    [{"max_seconds": 0}, {"max_seconds": float("inf")}, {"max_bytes": 0}, {"max_source_bytes": -1}],
    ids=str,
)
def test_refuses_limits_that_limit_nothing(tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        GrammarCompiler(tokenizer, 4096, **settings)


def test_a_closed_compiler_says_so(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, 4096)
    compiler.close()
    compiler.close()
    with pytest.raises(EngineClosed):
        compiler.compile(GuidedDecodingParams(regex="a"))
