"""The grammar that an answer must meet, in llguidance's form, made from JSON schemas.

Pure text to text; `constrain` has the library. Two rewritings of a schema are here. Each gives
a schema whose values all meet the one that was given: `plain` leaves out what says nothing about
the value, `narrowed` what nobody asked for by name.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar, cast

Schema = Mapping[str, Any]
T = TypeVar("T")

MAX_DEPTH = 100
"""How deep schemas may be nested; llguidance reads JSON of up to 128 levels."""

FORMATS = frozenset(
    {"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
"""String formats that are kept to. JSON Schema has any other as a remark."""

# At most one space between JSON's tokens: small models otherwise lose themselves in blank space.
_GUIDANCE = {"x-guidance": {"whitespace_pattern": " ?"}}

_ONE = ("items", "additionalProperties", "additionalItems")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
# Beside these a value is checked more than once, so a schema may not be narrowed by itself.
_CROSSING = ("allOf", "oneOf", "not", "if", "dependentSchemas", "unevaluatedProperties")
_LOOKAROUND = ("(?=", "(?!", "(?<")

# A class that is told by what is not in it, up to what stands there first.
_ESCAPED_OR_NOT_IN = re.compile(r"\\.|\[\^(-?)(?!\])", re.DOTALL)
_INT64 = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A JSON schema of a grammar, and the parameter that it came in."""

    param: str
    schema: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """A grammar as llguidance reads it, and its schemas, for messages about it."""

    text: str
    parts: tuple[Part, ...]

    @property
    def param(self) -> str:
        """The parameter that asks for it."""
        return self.parts[0].param if len(self.parts) == 1 else "tools"


def part(schema: Schema, param: str) -> Part:
    """Return a schema as the library takes it."""
    return Part(param=param, schema=json.dumps({**plain(schema), **_GUIDANCE}))


def json_grammar(schema: Schema, param: str) -> Grammar:
    """Return the grammar of a JSON text that a schema describes."""
    one = part(schema, param)
    return Grammar(text=f"start: %json {one.schema}", parts=(one,))


def depth(value: Any) -> int:
    """Return how deep a JSON value is nested, 0 for a scalar."""
    level, deepest = _containers([value]), 0
    while level:
        level, deepest = [x for one in level for x in _containers(_inside(one))], deepest + 1
    return deepest


def _containers(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


def _inside(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def plain(schema: Schema) -> Schema:
    """Leave out unknown formats, and choices that no text can meet where there are others.

    No class of a pattern has all control characters: llguidance would take an escaped quote and
    backslash for some of them (`[^"]` would allow a quote).
    """
    return _rewritten(schema, _plain)


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    given = schema.get("format")
    if isinstance(given, str) and given not in FORMATS:
        schema.pop("format")
    choices = schema.get("anyOf")
    if isinstance(choices, list):
        kept = [one for one in choices if not _looks_around(one)]
        schema["anyOf"] = kept or choices
    if isinstance(schema.get("pattern"), str):
        schema["pattern"] = _ESCAPED_OR_NOT_IN.sub(_without_nul, schema["pattern"])
    return schema


def _without_nul(found: re.Match[str]) -> str:
    if found[0].startswith("\\"):
        return found[0]
    return "[^\\x00" + ("\\-" if found[1] else "")


def _looks_around(schema: Any) -> bool:
    pattern = schema.get("pattern") if isinstance(schema, dict) else None
    return isinstance(pattern, str) and any(one in pattern for one in _LOOKAROUND)


def inexact(schema: Schema) -> str:
    """Return the first keyword whose number llguidance would change, "" if there is none.

    It has numbers as doubles, spells them with the digits that a double needs, and cuts the bounds
    of integers to 64 bits.
    """
    for one in _subschemas(schema):
        for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            if (bound := _whole(one, key)) is not None and not _bounds(one, key, bound):
                return f"{key} {bound}, which is rounded"
        for key in ("const", "enum"):
            for value in _scalars(one.get(key)):
                if type(value) is int and _spelled(value) != value:
                    return f"{key} {value}, which is rounded"
    return ""


def _whole(schema: Schema, key: str) -> int | None:
    bound = schema.get(key)
    if isinstance(bound, float) and schema.get("type") == "integer" and bound.is_integer():
        return int(bound)
    return bound if type(bound) is int else None


def _bounds(schema: Schema, key: str, bound: int) -> bool:
    held = _rounded(bound)
    if schema.get("type") != "number":
        held = max(-_INT64, min(held, _INT64 - 1))
    return held >= bound if key.endswith("inimum") else held <= bound


def _rounded(value: int) -> int:
    """Return the number as a double; the library itself refuses a number that no double holds."""
    with contextlib.suppress(OverflowError):
        return int(float(value))
    return value


def _spelled(value: int) -> int:
    with contextlib.suppress(OverflowError):
        return int(Decimal(repr(float(value))))
    return value


def _scalars(value: Any) -> Iterator[Any]:
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict | list):
            left += _inside(one)
        else:
            yield one


def narrowed(schema: Schema) -> Schema:
    """Allow only the properties that an object names, as callers of functions expect.

    Where schemas cross (allOf, oneOf, ...) only the outermost object is narrowed.
    """
    crossing = any(key in one for one in _subschemas(schema) for key in _CROSSING)
    if not crossing:
        return _rewritten(schema, _closed)
    to_itself = any(one.get("$ref") == "#" for one in _subschemas(schema))
    return schema if to_itself else _closed(dict(schema))


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    properties, required = schema.get("properties"), schema.get("required", [])
    free = isinstance(properties, dict) and not any(
        key in schema
        for key in ("additionalProperties", "minProperties", "$ref", "anyOf", *_CROSSING)
    )
    if free and isinstance(required, list):
        names = {name for name in required if isinstance(name, str)}
        if names <= properties.keys():  # type: ignore[union-attr]
            schema["additionalProperties"] = False
    return schema


def without_doubles(schema: Schema) -> Schema:
    """Limit lists of unique items to one item: random items cannot be kept different."""
    return _rewritten(schema, _single)


def _single(schema: dict[str, Any]) -> dict[str, Any]:
    least = schema.get("minItems", 0)
    if schema.get("uniqueItems") is True and least in (0, 1):
        most = schema.get("maxItems", 1)
        schema["maxItems"] = min(most, 1) if type(most) is int else most
    if schema.get("uniqueItems") is False or schema.get("maxItems") in (0, 1):
        schema.pop("uniqueItems", None)
    return schema


def _rewritten(schema: T, rule: Callable[[dict[str, Any]], dict[str, Any]]) -> T:
    """Apply a rule to a schema and all schemas in it, the inner ones first."""
    if not isinstance(schema, Mapping):
        return schema
    out = dict(schema)
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            out[key] = {name: _rewritten(one, rule) for name, one in value.items()}
        elif key in _LISTS and isinstance(value, list):
            out[key] = [_rewritten(one, rule) for one in value]
        elif key in _ONE:
            out[key] = _rewritten(value, rule)
    return cast(T, rule(out))


def _subschemas(schema: Schema) -> Iterator[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []

    def note(one: dict[str, Any]) -> dict[str, Any]:
        found.append(one)
        return one

    _rewritten(schema, note)
    return iter(found)
