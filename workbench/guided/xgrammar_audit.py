"""What xgrammar would drop or bend without a word, so that it is refused or sent elsewhere instead.

Used by the worker before xgrammar compiles. Found by comparing what it accepts with jsonschema and
`re` (tests/guided/test_exactness.py keeps doing so): its converter enforces a keyword only beside
some others, and reads some regular expressions in its own way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from workbench.guided.jobs import Refused
from workbench.guided.schema_ends import parts

# Keywords that constrain nothing; unknown ones mean nothing either, as JSON Schema has it.
# fmt: off
CONSTRAINTS = frozenset((
    "$ref", "$dynamicRef", "$anchor", "$dynamicAnchor", "$id", "additionalItems",
    "additionalProperties", "allOf", "anyOf", "const", "contains", "dependencies",
    "dependentRequired", "dependentSchemas", "else", "enum", "exclusiveMaximum",
    "exclusiveMinimum", "format", "if", "items", "maxContains", "maxItems", "maxLength",
    "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties",
    "minimum", "multipleOf", "not", "oneOf", "pattern", "patternProperties", "prefixItems",
    "properties", "propertyNames", "required", "then", "type", "unevaluatedItems",
    "unevaluatedProperties", "uniqueItems",
))
# fmt: on
RANGE = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
# Beside `type`, the sets of keywords that are enforced together.
EXACT: dict[str, list[set[str]]] = {
    "object": [
        {"properties", "required", "additionalProperties"},
        {"additionalProperties", "maxProperties"},
    ],
    "array": [{"items", "prefixItems", "minItems", "maxItems"}],
    "string": [{"minLength", "maxLength"}, {"pattern"}, {"format"}],
    "integer": [RANGE],
    "number": [RANGE],
    "boolean": [set()],
    "null": [set()],
}
FORMATS = frozenset(["date", "date-time", "time", "ipv4", "ipv6", "uuid", "email"])


def check_schema_for_xgrammar(schema: Any) -> None:
    """Raise `Refused` if xgrammar would not enforce some keyword of a valid schema."""
    for path, node in parts(schema):
        closes = node is False and path.endswith(("/additionalProperties", "/items"))
        problem = "" if closes else _problem(node)
        if problem:
            fix = "Use backend='llguidance', or rewrite that part."
            raise Refused(f"xgrammar does not enforce {path}: {problem}", fix)


def _problem(node: Any) -> str:
    """Return what is wrong with one part, its inner schemas aside; empty where nothing is."""
    if node is False:
        return "the schema `false`"
    if not isinstance(node, Mapping):
        return ""
    keys = node.keys() & CONSTRAINTS
    for alone in ("$ref", "anyOf"):
        if alone in keys:
            beside = sorted(keys - {alone})
            return f"{', '.join(beside)} beside {alone}" if beside else ""
    kind = node.get("type")
    if keys & {"enum", "const"}:
        return _listed_problem(node, keys)
    if not keys or keys == {"type"}:
        return ""
    if not isinstance(kind, str):
        return f"{', '.join(sorted(keys - {'type'}))} without one `type`"
    return _typed_problem(node, kind, keys - {"type"})


def _listed_problem(node: Mapping[str, Any], keys: set[str]) -> str:
    if len(keys - {"type"}) > 1:
        return f"{', '.join(sorted(keys - {'type'}))} together"
    import jsonschema  # as in `schema_ends`

    kind = {"type": node["type"]} if "type" in node else True
    valid = jsonschema.Draft202012Validator(kind).is_valid
    values = node["enum"] if "enum" in node else [node["const"]]
    wrong = [value for value in values if not valid(value)]
    return f"a type that excludes the listed {wrong[0]!r}" if wrong else ""


def _typed_problem(node: Mapping[str, Any], kind: str, keys: set[str]) -> str:
    if not any(keys <= together for together in EXACT[kind]):
        return f"{', '.join(sorted(keys))} of type {kind}"
    if kind == "object":
        undeclared = set(node.get("required", ())) - node.get("properties", {}).keys()
        return f"required {sorted(undeclared)[0]!r} without its property" if undeclared else ""
    if "format" in keys and node["format"] not in FORMATS:
        return f"format {node['format']!r}"
    if "pattern" in keys:
        pattern = node["pattern"]
        if not (pattern.startswith("^") and pattern.endswith("$")):
            return "a pattern without ^ and $, which it would anchor"
        return regex_problem(pattern)
    return ""


def check_regex_for_xgrammar(pattern: str) -> None:
    """Raise `Refused` if xgrammar reads a regular expression in its own way."""
    problem = regex_problem(pattern)
    if problem:
        raise Refused(f"xgrammar reads it differently: {problem}", "Use backend='llguidance'.")


# `.` also matches a newline there; \W \D \S \s are complements and sets of other alphabets. \w and
# \d are ASCII, which is narrower and so still matches.
ODD = re.compile(r"\\(?P<escape>.)|(?P<dot>\.)|\[\^?\]?(?P<klass>(?:\\.|[^\]\\])*)\]", re.DOTALL)
ESCAPES = frozenset("wdnrtfvux")


def regex_problem(pattern: str) -> str:
    """Return what xgrammar would read differently than `re`; empty where nothing is known."""
    for match in ODD.finditer(pattern):
        escape, inside = match["escape"], match["klass"]
        if match["dot"]:
            return "`.` would match a newline; write [^\\n]"
        if inside is not None:
            if "[" in re.sub(r"\\.", "", inside) or "&&" in inside:
                return "a set inside a set"
            negated = match[0].startswith("[^")
            for inner in re.findall(r"\\(.)", inside, re.DOTALL):
                if _odd_escape(inner) or (negated and inner in "wd"):
                    return f"\\{inner} in a set"
        elif _odd_escape(escape):
            return f"\\{escape}"
    return ""


def _odd_escape(character: str) -> bool:
    return character.isalnum() and character not in ESCAPES
