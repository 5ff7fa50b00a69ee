"""Structural tags: one form out of two, what is inside them, and their translation for llguidance.

Used by the worker. The form is xgrammar's `{"type": "structural_tag", "format": …}`; the older
`{"structures": [{"begin", "schema", "end"}], "triggers": […]}` is turned into it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic
from llguidance import StructTag
from xgrammar import StructuralTag

from workbench.guided.jobs import Refused

Format = dict[str, Any]
TOKEN_FORMATS = frozenset(
    ["token", "exclude_token", "any_tokens", "token_triggered_tags", "token_dispatch"]
)
TRANSLATABLE = {"type", "triggers", "tags", "at_least_one", "stop_after_first", "excludes"}


def normal_form(source: str) -> Format:
    """Return a structural tag in xgrammar's form. Raises `Refused` if it is not one, if a key would
    be ignored, or if it asks for special tokens, which no guided text may hold."""
    given: Format = json.loads(source)
    if "structures" in given or "triggers" in given:
        given = _from_structures(given)
    try:
        kept = StructuralTag.model_validate(given).model_dump()
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = "/".join(str(part) for part in first["loc"])
        raise Refused(f"no structural tag: {where}: {first['msg']}") from error
    ignored = next(_ignored(given, kept, "structural_tag"), None)
    if ignored:
        raise Refused(f"{ignored} means nothing there", "Remove it.")
    for inner in formats(given):
        if inner.get("type") in TOKEN_FORMATS:
            problem = f"format {inner['type']!r}: guided text holds no special tokens"
            raise Refused(problem, "Name tags by their text.")
    return given


def formats(tag: Format) -> Iterator[Format]:
    """Yield every format of a normal form, outermost first; not what is inside a schema."""
    stack: list[Any] = [tag["format"]]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack += node
        elif isinstance(node, dict):
            yield node
            stack += [value for key, value in node.items() if key != "json_schema"]


def to_llguidance(tag: Format) -> str:
    """Return a Lark grammar for triggered tags of JSON schemas; else raises `Refused`."""
    outer = tag["format"]
    plain = outer.get("type") == "triggered_tags" and outer.keys() <= TRANSLATABLE
    extra = [key for key in ("at_least_one", "stop_after_first", "excludes") if outer.get(key)]
    if not plain or extra:
        what = ", ".join(extra) or repr(outer.get("type"))
        raise Refused(f"llguidance has no structural tag with {what}", "Use backend='xgrammar'.")
    tags = [_struct_tag(inner, outer["triggers"]) for inner in outer["tags"]]
    return StructTag.to_grammar(tags, assume_special=False)


def _struct_tag(tag: Format, triggers: list[str]) -> StructTag:
    content = tag["content"]
    usual = content.get("type") == "json_schema" and content.keys() <= {"type", "json_schema"}
    if not usual or not isinstance(tag["begin"], str) or not isinstance(tag["end"], str):
        problem = "llguidance has no structural tag but text, a JSON schema, text"
        raise Refused(problem, "Use backend='xgrammar'.")
    fitting = [trigger for trigger in triggers if tag["begin"].startswith(trigger)]
    if len(fitting) != 1 or not fitting[0]:
        raise Refused(f"tag {tag['begin']!r} does not begin with exactly one of the triggers")
    schema = content["json_schema"]
    schema = {} if schema is True else schema
    return StructTag(trigger=fitting[0], begin=tag["begin"], grammar=schema, end=tag["end"])


def _from_structures(given: Mapping[str, Any]) -> Format:
    try:
        tags = [
            {
                "type": "tag",
                "begin": part["begin"],
                "content": {"type": "json_schema", "json_schema": part["schema"]},
                "end": part["end"],
            }
            for part in given["structures"]
        ]
        triggers = given["triggers"]
    except (KeyError, TypeError) as error:
        raise Refused(f"no structural tag: {error} is missing") from error
    wrapped = {"type": "triggered_tags", "triggers": triggers, "tags": tags}
    return {"type": "structural_tag", "format": wrapped}


def _ignored(given: Any, kept: Any, path: str) -> Iterator[str]:
    """Yield the path of every key that validation has lost."""
    if isinstance(given, Mapping) and isinstance(kept, Mapping):
        for key, value in given.items():
            if key not in kept:
                yield f"{path}.{key}"
            elif key != "json_schema":
                yield from _ignored(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(kept, list | tuple):
        for i, (a, b) in enumerate(zip(given, kept, strict=True)):
            yield from _ignored(a, b, f"{path}[{i}]")
