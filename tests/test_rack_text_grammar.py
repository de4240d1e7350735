"""Rewritten schemas allow no value that the given one does not."""

from typing import Any

import pytest

from rack.text.grammar import depth, inexact, json_grammar, narrowed, plain, without_doubles

OPEN = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CLOSED = OPEN | {"additionalProperties": False}


def test_objects_with_named_properties_are_closed_wherever_they_stand() -> None:
    assert narrowed(OPEN) == CLOSED
    outer: dict[str, Any] = {
        "properties": {"x": {"anyOf": [OPEN, {"type": "null"}]}, "y": {"items": OPEN}},
        "$defs": {"D": OPEN},
    }
    assert narrowed(outer) == {
        "properties": {"x": {"anyOf": [CLOSED, {"type": "null"}]}, "y": {"items": CLOSED}},
        "$defs": {"D": CLOSED},
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        OPEN | {"additionalProperties": True},
        OPEN | {"additionalProperties": {"type": "string"}},
        OPEN | {"required": ["a", "b"]},
        OPEN | {"required": "a"},
        OPEN | {"minProperties": 3},
        OPEN | {"anyOf": [{"required": ["a"]}]},
        OPEN | {"$ref": "#/$defs/x", "$defs": {"x": {}}},
        {"enum": [OPEN], "const": OPEN, "default": OPEN, "examples": [OPEN]},
        {"allOf": [OPEN, {"properties": {"b": {}}}]},
        {"oneOf": [OPEN, {"properties": {"b": {}}}]},
        {"properties": {"a": {"allOf": [{"$ref": "#"}]}}},
    ],
)
def test_what_would_change_the_meaning_is_left_alone(schema: dict[str, Any]) -> None:
    assert narrowed(schema) == schema


def test_where_schemas_cross_only_the_outermost_is_closed() -> None:
    schema = {"properties": {"a": {"allOf": [OPEN]}, "b": OPEN}}
    assert narrowed(schema) == schema | {"additionalProperties": False}


def test_formats_that_are_remarks_are_left_out() -> None:
    schema = {"properties": {"a": {"format": "password"}, "format": {"format": "uuid"}}}
    assert plain(schema) == {"properties": {"a": {}, "format": {"format": "uuid"}}}


def test_choices_with_lookaround_are_left_out_where_there_are_others() -> None:
    bad = {"type": "string", "pattern": "^(?!a)b"}
    assert plain({"anyOf": [{"type": "number"}, bad]}) == {"anyOf": [{"type": "number"}]}
    assert plain({"anyOf": [bad]}) == {"anyOf": [bad]}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('^[^"]+$', r'^[^\x00"]+$'),
        (r"^[^\\]*[^a]$", r"^[^\x00\\]*[^\x00a]$"),
        ("[^-a]", r"[^\x00\-a]"),
        (r"\[^a]", r"\[^a]"),
        (r"[\[^a]", r"[\[^a]"),
        ("[^]a]", "[^]a]"),
        ("^[a^]$", "^[a^]$"),
    ],
)
def test_no_class_of_a_pattern_has_all_control_characters(given: str, expected: str) -> None:
    assert plain({"pattern": given}) == {"pattern": expected}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
        {"type": "integer", "minimum": -(2**63), "maximum": 10**30},
        {"minimum": 2**53, "exclusiveMaximum": 1.5},
        {"type": "number", "minimum": 1e20, "maximum": 10**22},
        {"const": 10**21, "enum": [2**53, 0.1, True, "9007199254740993", 10**400]},
        {"minimum": "x", "const": None, "properties": {"const": {}}},
        {"default": 2**53 + 1, "examples": [2**64]},
    ],
)
def test_numbers_that_are_taken_as_they_are(schema: dict[str, Any]) -> None:
    assert inexact(schema) == ""


def test_lists_of_different_items_get_at_most_one() -> None:
    schema = {"type": "array", "uniqueItems": True}
    assert without_doubles(schema) == {"type": "array", "maxItems": 1}
    assert without_doubles(schema | {"minItems": 2}) == schema | {"minItems": 2}
    assert without_doubles(schema | {"maxItems": 0}) == {"type": "array", "maxItems": 0}
    assert without_doubles(schema | {"maxItems": "x"}) == schema | {"maxItems": "x"}
    assert without_doubles({"uniqueItems": False}) == {}


def test_depth() -> None:
    assert [depth(x) for x in (1, [], {"a": [1, {}]}, [[[1]]])] == [0, 1, 3, 3]


def test_the_clients_own_guidance_is_not_taken() -> None:
    grammar = json_grammar({"x-guidance": {"lenient": True}, "type": "integer"}, "p")
    assert grammar.text == (
        'start: %json {"x-guidance": {"whitespace_pattern": " ?"}, "type": "integer"}'
    )
    assert [one.param for one in grammar.parts] == ["p"]
