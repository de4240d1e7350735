"""Read RoPE from config.json: `rope_parameters`, or `rope_theta` beside `rope_scaling`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from chip.kernels.vmath import yarn_attention_factor
from compiler.errors import ModelError
from compiler.files import shown, whole
from compiler.model.rope import ROPE_SCALINGS, RopeScaling, YarnRopeScaling

_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}  # beside a scaling's own
# transformers' values of YaRN's keys that may be absent, and the keys that give its factor.
_YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
_MSCALES = ("mscale", "mscale_all_dim")
MOST_FACTOR = 1e9  # of YaRN's numbers


def read_rope(path: Path, raw: Mapping[str, Any]) -> tuple[Any, RopeScaling | None]:
    """Read transformers 5's `rope_parameters`, or `rope_theta` and `rope_scaling` before it.

    The first is None where neither gives a theta.
    """
    new, old = raw.get("rope_parameters"), raw.get("rope_scaling")
    if new is not None and old is not None and new != old:
        raise ModelError(f"{path}: rope_scaling", "none beside other rope_parameters", shown(old))
    key = "rope_scaling" if new is None else "rope_parameters"
    rope = _or(_or(new, old), {})
    if not isinstance(rope, dict):
        raise ModelError(f"{path}: {key}", "an object", shown(rope))
    kind = _or(rope.get("rope_type"), _or(rope.get("type"), "default"))
    scaling = None
    if kind != "default":
        if not isinstance(kind, str) or kind not in ROPE_SCALINGS:
            wanted = " or ".join(map(repr, ("default", *ROPE_SCALINGS)))
            raise ModelError(f"{path}: {key}.rope_type", wanted, shown(kind))
        scaling = ROPE_SCALINGS[kind]
    _refuse_other_keys(path, key, rope, scaling)
    if (factor := rope.get("partial_rotary_factor", 1)) != 1 or factor is True:
        raise ModelError(f"{path}: {key}.partial_rotary_factor", "1", shown(factor))
    inner, outer = rope.get("rope_theta"), raw.get("rope_theta")
    if inner is not None and outer is not None and inner != outer:
        raise ModelError(f"{path}: rope_theta", f"{key}.rope_theta {shown(inner)}", shown(outer))
    found = None if scaling is None else _scaling(path, key, scaling, rope, raw)
    return _or(inner, outer), found


def _refuse_other_keys(
    path: Path, key: str, rope: Mapping[str, Any], scaling: type[RopeScaling] | None
) -> None:
    known = _KEYS | {field.name for field in fields(scaling)} if scaling else _KEYS
    if scaling is YarnRopeScaling:
        known = known | {*_MSCALES}
    if unknown := sorted(set(rope) - known):
        raise ModelError(f"{path}: {key}", f"only {sorted(known)}", f"unknown {shown(unknown)}")


def _scaling(
    path: Path, key: str, scaling: type[RopeScaling], rope: Mapping[str, Any],
    raw: Mapping[str, Any],
) -> RopeScaling:  # fmt: skip
    names = [field.name for field in fields(scaling)]
    numbers = {name: rope[name] for name in names if rope.get(name) is not None}
    if scaling is YarnRopeScaling:
        length = {"original_max_position_embeddings": raw.get("max_position_embeddings")}
        numbers = {**_YARN, **length, **numbers}
        if "attention_factor" not in numbers and "factor" in numbers:
            numbers["attention_factor"] = _attention_factor(path, key, rope)
    required = ["factor"] if scaling is YarnRopeScaling else names
    if missing := [name for name in required if name not in numbers]:
        raise ModelError(f"{path}: {key}", f"all of {required}", f"no {missing}")
    length_of = "original_max_position_embeddings"
    if length_of in numbers:
        numbers[length_of] = whole(numbers[length_of])
    try:
        return scaling(**numbers)
    except ModelError as error:
        raise ModelError(f"{path}: {error.what}", error.wanted, error.got) from None


def _attention_factor(path: Path, key: str, rope: Mapping[str, Any]) -> float:
    """Return the factor that transformers takes where none is given."""
    numbers = []
    for name in ("factor", *_MSCALES):
        value = 0 if rope.get(name) is None else rope[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= MOST_FACTOR:
            raise ModelError(f"{path}: {key}.{name}", "a positive number", shown(value))
        numbers.append(value)
    factor, above, below = numbers
    if above and below:
        return yarn_attention_factor(factor, above) / yarn_attention_factor(factor, below)
    return yarn_attention_factor(factor, 1.0)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
