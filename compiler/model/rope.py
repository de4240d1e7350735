"""The kinds of RoPE scaling, by transformers' names. Their arithmetic is in chip/kernels/vmath.py.

Each raises ModelError when its numbers cannot describe a scaling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from compiler.errors import ModelError
from compiler.files import shown
from compiler.model.checks import boolean, exact_fields, positive_int, positive_number

_OWNER = "rope_scaling"


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3RopeScaling:
    """Llama 3.1's scaling: fast frequencies stay, slow ones are divided by the factor."""

    rope_type: ClassVar[str] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        positive_int(_OWNER, self, "original_max_position_embeddings")
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            positive_number(_OWNER, self, name)
        _at_least_one(self.factor)
        if self.low_freq_factor >= self.high_freq_factor:
            raise ModelError(
                "rope_scaling.high_freq_factor",
                f"more than low_freq_factor {self.low_freq_factor!r}",
                repr(self.high_freq_factor),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRopeScaling:
    """Every frequency is divided by the factor."""

    rope_type: ClassVar[str] = "linear"
    factor: float

    def __post_init__(self) -> None:
        positive_number(_OWNER, self, "factor")
        _at_least_one(self.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicRopeScaling:
    """Frequencies that fall with the length beyond `max_position_embeddings`.

    No context is compiled that is longer, so all are those without scaling.
    """

    rope_type: ClassVar[str] = "dynamic"
    factor: float

    def __post_init__(self) -> None:
        positive_number(_OWNER, self, "factor")
        _at_least_one(self.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnRopeScaling:
    """YaRN: as llama3 in other words; cosines and sines are multiplied by `attention_factor`."""

    rope_type: ClassVar[str] = "yarn"
    factor: float
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        positive_int(_OWNER, self, "original_max_position_embeddings")
        for name in ("factor", "attention_factor", "beta_fast", "beta_slow"):
            positive_number(_OWNER, self, name)
        _at_least_one(self.factor)
        boolean(_OWNER, self, "truncate")
        if self.beta_slow >= self.beta_fast:
            raise ModelError(
                "rope_scaling.beta_fast", f"more than beta_slow {self.beta_slow!r}",
                repr(self.beta_fast),
            )  # fmt: skip


RopeScaling = Llama3RopeScaling | LinearRopeScaling | DynamicRopeScaling | YarnRopeScaling
ROPE_SCALINGS: dict[str, type[RopeScaling]] = {
    one.rope_type: one
    for one in (LinearRopeScaling, DynamicRopeScaling, YarnRopeScaling, Llama3RopeScaling)
}


def scaling_values(scaling: RopeScaling) -> dict[str, Any]:
    """Return the plain form; `scaling_of` is the inverse. llama3's has no `rope_type`."""
    kind = {} if isinstance(scaling, Llama3RopeScaling) else {"rope_type": scaling.rope_type}
    return {**kind, **asdict(scaling)}


def scaling_of(what: str, values: Mapping[str, Any]) -> RopeScaling:
    """Rebuild a scaling; raises ModelError on an unknown kind, and for other than its fields."""
    kind = values.get("rope_type", Llama3RopeScaling.rope_type)
    if kind not in ROPE_SCALINGS:
        wanted = " or ".join(map(repr, ROPE_SCALINGS))
        raise ModelError(f"{what}.rope_type", wanted, shown(kind))
    own = {key: value for key, value in values.items() if key != "rope_type"}
    exact_fields(what, ROPE_SCALINGS[kind], own)
    return ROPE_SCALINGS[kind](**own)


def _at_least_one(factor: float) -> None:
    if factor < 1:
        raise ModelError("rope_scaling.factor", "at least 1", repr(factor))
