"""`GuidedDecodingParams`: the one constraint that a request's text must meet.

Frozen and checked when made: exactly one constraint, of the right type. Whether a grammar can be
compiled only `workbench.guided.GrammarCompiler` can tell, off the engine's thread. Nothing here
imports a grammar library.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from workbench.errors import RequestError
from workbench.keywords import known_keywords

GuideBackend = Literal["auto", "xgrammar", "llguidance"]
GuideKind = Literal["json", "json_object", "regex", "grammar", "choice", "structural_tag"]
KINDS: tuple[GuideKind, ...] = (
    "json",
    "json_object",
    "regex",
    "grammar",
    "choice",
    "structural_tag",
)
BACKENDS = ("auto", "xgrammar", "llguidance")
ONE_OF = "Give one of json, json_object, regex, grammar, choice, structural_tag."


@known_keywords(RequestError)
@dataclass(frozen=True, slots=True)
class GuidedDecodingParams:
    """What the generated text must be; exactly one of the first six.

    json: a JSON schema, as a mapping, as JSON text or as a pydantic model class; kept as JSON text.
    json_object: any JSON object. regex: the whole text matches it. grammar: the text derives from
    the rule `root` of a GBNF grammar (`name ::= "literal" [class] other-rule | …`). choice: the
    text is one of these. structural_tag: free text with constrained parts, as xgrammar defines
    them, or as `{"structures": [{"begin", "schema", "end"}], "triggers": […]}`; kept as JSON text.
    backend: the library; `auto` takes the one that is exact for this constraint.
    max_whitespace: in JSON, at most this many blanks and newlines between two tokens of its
    syntax (0: none at all; None: as many as the model likes).
    """

    json: str | Mapping[str, Any] | type | None = None
    json_object: bool = False
    regex: str | None = None
    grammar: str | None = None
    choice: tuple[str, ...] | None = None
    structural_tag: str | Mapping[str, Any] | None = None
    backend: GuideBackend = "auto"
    max_whitespace: int | None = None

    def __post_init__(self) -> None:
        """Refuse none, several, or what is not of its type; turn schemas into text."""
        if not isinstance(self.json_object, bool):
            raise _error("json_object", self.json_object, "must be True or False", "Change it.")
        given = [kind for kind in KINDS if getattr(self, kind) not in (None, False)]
        if len(given) != 1:
            problem = f"these exclude each other: {', '.join(given)}" if given else "no constraint"
            raise RequestError("guided_decoding", given, problem, ONE_OF)
        if self.backend not in BACKENDS:
            raise _error("backend", self.backend, "no such backend", f"Known: {_list(BACKENDS)}.")
        for kind in ("json", "structural_tag"):
            if getattr(self, kind) is not None:
                object.__setattr__(self, kind, _json_text(kind, getattr(self, kind)))
        for kind in ("regex", "grammar"):
            value = getattr(self, kind)
            if value is not None:
                _require_text(kind, value)
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        self._check_whitespace()

    @property
    def kind(self) -> GuideKind:
        """Which constraint this is."""
        return next(kind for kind in KINDS if getattr(self, kind) not in (None, False))

    @property
    def source(self) -> str:
        """The constraint as text: the schema, tag or choices as JSON, the regex or grammar."""
        if self.kind == "json_object":
            return '{"type":"object"}'
        value = getattr(self, self.kind)
        return value if isinstance(value, str) else _dump(list(value))

    def _check_whitespace(self) -> None:
        number = self.max_whitespace
        if number is None:
            return
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            problem = "must be a whole number of at least 0"
            raise _error("max_whitespace", number, problem, "None sets no limit.")
        if self.kind not in ("json", "json_object"):
            problem = f"there is no JSON syntax to limit in a `{self.kind}`"
            raise _error("max_whitespace", number, problem, "Leave it out.")


def _json_text(kind: str, value: Any) -> str:
    """Return JSON text of a schema or tag in one spelling, the order of its keys kept."""
    model_schema = getattr(value, "model_json_schema", None)
    if isinstance(value, type) and callable(model_schema):
        value = model_schema()
    elif kind == "structural_tag" and callable(getattr(value, "model_dump", None)):
        value = value.model_dump()
    try:
        data = json_format.loads(value) if isinstance(value, str) else value
        text = _dump(data) if isinstance(data, Mapping | bool) else ""
    except ValueError as error:
        raise _error(kind, value, f"not valid JSON: {error}", "Mend the text.") from error
    except TypeError as error:
        raise _error(kind, value, f"not JSON: {error}", "Use JSON's types alone.") from error
    except RecursionError:
        raise _error(kind, "…", "nested too deeply", "Name its parts in `$defs`.") from None
    if not text:
        problem = "must be a JSON object, as a mapping or as text"
        raise _error(kind, value, problem, "Or a pydantic model class, for `json`.")
    _require_text(kind, text)
    return text


def _dump(data: Any) -> str:
    if isinstance(data, Mapping):
        data = dict(data)
    return json_format.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _choices(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise _error("choice", value, "must be a list of strings", "Give a list.")
    choices = tuple(dict.fromkeys(value))
    if not choices:
        raise _error("choice", value, "no choice to take", "List at least one string.")
    for choice in choices:
        _require_text("choice", choice)
    return choices


def _require_text(kind: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _error(kind, value, "must be text", "Give a string.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        problem = f"holds half a surrogate pair, which no text can be: {error}"
        raise _error(kind, value, problem, "Remove it.") from error


def _error(field: str, value: Any, problem: str, fix: str) -> RequestError:
    return RequestError(f"guided_decoding.{field}", value, problem, fix)


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names)
