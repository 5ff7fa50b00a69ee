"""Checks a JSON schema before a library sees it: valid, its references inside it, and every part
of it satisfiable by a finite value.

Used by the worker. A schema such as `{"$ref": "#"}`, or an object that requires itself, compiles
in both libraries and then traps the sequence: once inside, no end is reachable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from workbench.guided.jobs import Refused

Schema = Any  # a mapping or a boolean
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE = ("items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")


def check_schema(schema: Schema) -> None:
    """Raise `Refused` for a schema that is invalid, refers elsewhere, or holds a trap."""
    import jsonschema  # nearly a second: the engine's process imports this module and never checks
    from jsonschema.validators import validator_for

    draft = validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        draft.check_schema(schema)
    except jsonschema.SchemaError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "the schema"
        raise Refused(f"invalid JSON schema at {where}: {error.message}") from error
    _check_ends(schema)


def parts(schema: Schema, path: str = "#") -> Iterator[tuple[str, Schema]]:
    """Yield the schema and every schema inside it, with its JSON pointer."""
    stack = [(path, schema)]
    while stack:
        path, node = stack.pop()
        yield path, node
        if not isinstance(node, Mapping):
            continue
        for key in MAPS:
            stack += [(f"{path}/{key}/{name}", part) for name, part in node.get(key, {}).items()]
        for key in LISTS:
            stack += [(f"{path}/{key}/{i}", part) for i, part in enumerate(node.get(key, ()))]
        stack += [(f"{path}/{key}", node[key]) for key in SINGLE if key in node]


def resolve(root: Schema, reference: str) -> Schema:
    """Return what a `$ref` means. Raises `Refused` unless it is a pointer into the schema."""
    node = root
    if reference != "#" and not reference.startswith("#/"):
        problem = f"$ref {reference!r} is no JSON pointer into the schema"
        raise Refused(problem, "Refer to `#/$defs/<name>`; nothing is fetched.")
    for part in reference.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        try:
            node = node[int(key)] if isinstance(node, list) else node[key]
        except (KeyError, IndexError, ValueError, TypeError):
            problem = f"$ref {reference!r} leads nowhere"
            raise Refused(problem, "Define it, or mend the pointer.") from None
    return node


def _check_ends(schema: Schema) -> None:
    """Raise `Refused` if some part, other than a plain `false`, has no finite value."""
    nodes = _nodes(schema)
    ending: set[int] = set()
    while True:
        more = {
            key
            for key, (_, node) in nodes.items()
            if key not in ending and _ends(node, schema, ending)
        }
        if not more:
            break
        ending |= more
    stuck = [path for key, (path, node) in nodes.items() if key not in ending and node is not False]
    if stuck:
        problem = f"no finite value satisfies {', '.join(stuck[:4])}: it always needs another"
        raise Refused(problem, "Make the recursion optional.")


def _nodes(schema: Schema) -> dict[int, tuple[str, Schema]]:
    """Return every part by identity, with its pointer; also what only a `$ref` says is a schema."""
    nodes: dict[int, tuple[str, Schema]] = {}
    waiting = [("#", schema)]
    while waiting:
        start, part = waiting.pop()
        found = {id(node): (path, node) for path, node in parts(part, start)}
        nodes = found | nodes
        for _, node in found.values():
            if isinstance(node, Mapping) and "$ref" in node:
                target = resolve(schema, node["$ref"])
                if id(target) not in nodes:
                    waiting.append((node["$ref"], target))
    return nodes


def _ends(node: Schema, root: Schema, ending: set[int]) -> bool:
    """Whether a part has a finite value, as far as is known from the parts that do."""
    if not isinstance(node, Mapping):
        return node is not False

    def good(part: Schema) -> bool:
        # True and False are shared objects: never looked up by identity.
        return part if isinstance(part, bool) else id(part) in ending

    if "$ref" in node and not good(resolve(root, node["$ref"])):
        return False
    if not all(good(part) for part in node.get("allOf", ())):
        return False
    for key in ("anyOf", "oneOf"):
        if key in node and not any(good(part) for part in node[key]):
            return False
    if "enum" in node or "const" in node:
        return bool(node.get("enum", True))
    kinds = node.get("type", ())
    if kinds == "object":
        properties = node.get("properties", {})
        return all(
            good(properties[name]) for name in node.get("required", ()) if name in properties
        )
    if kinds == "array":
        least, first = node.get("minItems", 0), node.get("prefixItems", [])
        needed = [*first[:least], *([node.get("items", True)] if least > len(first) else [])]
        return all(good(part) for part in needed)
    return True
