"""`GuidedDecodingParams`: one constraint, of its type, in one spelling."""

from __future__ import annotations

import json
import pickle

import pydantic
import pytest

import workbench as wb
from workbench.errors import RequestError
from workbench.guided_params import GuidedDecodingParams


class Person(pydantic.BaseModel):
    """What a user would write."""

    name: str
    age: int


@pytest.mark.parametrize(
    ("constraint", "complaint"),
    [
        ({}, "no constraint"),
        ({"json_object": False}, "no constraint"),
        ({"regex": "a", "choice": ["b"]}, "regex, choice"),
        ({"json": {}, "json_object": True}, "json, json_object"),
        ({"choice": []}, "no choice"),
        ({"choice": "yes"}, "list of strings"),
        ({"choice": [1]}, "must be text"),
        ({"regex": b"a"}, "must be text"),
        ({"regex": 3}, "must be text"),
        ({"grammar": ["root"]}, "must be text"),
        ({"regex": "\ud800"}, "surrogate"),
        ({"choice": ["\udfff"]}, "surrogate"),
        ({"json": "{"}, "not valid JSON"),
        ({"json": "[1]"}, "JSON object"),
        ({"json": 3}, "JSON object"),
        ({"json": {"const": {1, 2}}}, "not JSON"),
        ({"json": {"const": float("nan")}}, "not valid JSON"),
        ({"json": dict}, "JSON object"),
        ({"json_object": 1}, "True or False"),
        ({"structural_tag": "no"}, "not valid JSON"),
        ({"regex": "a", "backend": "outlines"}, "no such backend"),
        ({"regex": "a", "max_whitespace": 1}, "no JSON syntax"),
        ({"json": {}, "max_whitespace": -1}, "at least 0"),
        ({"json": {}, "max_whitespace": True}, "at least 0"),
        ({"regexp": "a"}, "Did you mean `regex`"),
        ({"json_schema": {}}, "no such setting"),
    ],
)
def test_refuses(constraint: dict[str, object], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        GuidedDecodingParams(**constraint)


def test_refuses_a_schema_that_contains_itself() -> None:
    endless: dict[str, object] = {}
    endless["not"] = endless
    with pytest.raises(RequestError, match=r"guided_decoding\.json"):
        GuidedDecodingParams(json=endless)


def test_refuses_a_schema_too_deep_for_python() -> None:
    schema: dict[str, object] = {}
    for _ in range(100_000):
        schema = {"not": schema}
    with pytest.raises(RequestError, match="nested too deeply"):
        GuidedDecodingParams(json=schema)


def test_schemas_of_every_form_become_one_text() -> None:
    schema = Person.model_json_schema()
    spaced = json.dumps(schema, indent=4)
    made = [GuidedDecodingParams(json=form) for form in (Person, schema, spaced)]
    assert made[0] == made[1] == made[2]
    assert json.loads(made[0].source) == schema
    assert hash(made[0]) == hash(made[1])


def test_the_order_of_keys_is_kept_because_it_is_the_order_of_the_output() -> None:
    one = GuidedDecodingParams(json={"properties": {"a": {}, "b": {}}})
    other = GuidedDecodingParams(json={"properties": {"b": {}, "a": {}}})
    assert one != other


def test_choices_are_frozen_and_told_once() -> None:
    params = GuidedDecodingParams(choice=["yes", "no", "yes"])
    assert params.choice == ("yes", "no")
    assert params.kind == "choice"


def test_an_empty_text_is_a_constraint() -> None:
    assert GuidedDecodingParams(regex="").kind == "regex"
    assert GuidedDecodingParams(json={}).kind == "json"


def test_is_part_of_the_public_surface_and_travels() -> None:
    params = wb.GuidedDecodingParams(regex="a+")
    assert pickle.loads(pickle.dumps(params)) == params
