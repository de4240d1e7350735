"""Checks of a configuration's values; each raises ModelError naming the owner and the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeGuard

from compiler.errors import ModelError
from compiler.files import shown

_SMALLEST, _LARGEST = 2.0**-126, 2.0**127  # of a number that the chips hold as fp32


def exact_fields(what: str, cls: type[Any], data: Mapping[str, Any]) -> None:
    """Refuse data that lacks one of a dataclass's fields, or has another."""
    wanted = {field.name for field in fields(cls)}
    if wanted != set(data):
        missing, unknown = sorted(wanted - set(data)), sorted(set(data) - wanted)
        raise ModelError(what, "exactly its own fields", f"missing {missing} and unknown {unknown}")


def is_int(value: object) -> TypeGuard[int]:
    """Tell whether a value is an integer; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def positive_int(owner: str, config: object, name: str) -> None:
    """Refuse a field that is no positive integer."""
    value = getattr(config, name)
    if not is_int(value) or value < 1:
        raise ModelError(f"{owner}: {name}", "a positive integer", shown(value))


def positive_number(owner: str, config: object, name: str) -> None:
    """Refuse a field that is no positive number of fp32; make it a float."""
    number = as_number(f"{owner}: {name}", getattr(config, name))
    object.__setattr__(config, name, number)  # 10000 and 10000.0 must hash alike


def as_number(what: str, value: object) -> float:
    """Return a positive number of fp32; refuse any other value."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ModelError(what, "a positive number", shown(value))
    if not _SMALLEST <= value <= _LARGEST:
        wanted = f"a number from {_SMALLEST:.3g} to {_LARGEST:.3g}"
        raise ModelError(what, wanted, shown(value))
    return float(value)


def boolean(owner: str, config: object, name: str) -> None:
    """Refuse a field that is no bool."""
    value = getattr(config, name)
    if not isinstance(value, bool):
        raise ModelError(f"{owner}: {name}", "a bool", shown(value))
