"""A model's configuration: the sizes and constants that define it, checked, without weights.

compiler/model/frontend.py reads it from `config.json`, compiler/model/presets.py has some, and an
artifact stores it as a plain dict. Non-goal: any arithmetic. Chips compute the RoPE frequencies
from these numbers in their own vector arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from chip.ops.opcodes import Function
from compiler.errors import ModelError
from compiler.files import shown
from compiler.model.architecture import ARCHITECTURES, ENCODERS
from compiler.model.checks import boolean, exact_fields, is_int, positive_int, positive_number
from compiler.model.rope import RopeScaling, scaling_of, scaling_values


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """What an encoder has that decoders have not: kinds of tokens, and the MLP's function.

    Raises ModelError for no kind of token, or an unknown function.
    """

    type_vocab_size: int
    activation: Function

    def __post_init__(self) -> None:
        positive_int("encoder", self, "type_vocab_size")
        if self.activation not in list(Function):
            wanted = " or ".join(Function)
            raise ModelError("encoder: activation", wanted, shown(self.activation))
        object.__setattr__(self, "activation", Function(self.activation))


_MOST_EXPERTS = 1 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """How many experts a layer has, and how many of them each row goes through.

    Raises ModelError for none of either, or for more than there are.
    """

    count: int
    chosen: int

    def __post_init__(self) -> None:
        for name, most in (("count", _MOST_EXPERTS), ("chosen", self.count)):
            positive_int("experts", self, name)
            if getattr(self, name) > most:
                raise ModelError(f"experts: {name}", f"at most {most}", shown(getattr(self, name)))


MOST_LAYERS = 256
# The largest sizes that are accepted: larger than those of published Llamas, and small enough that
# the model is compiled, or refused for its memory, in bounded time.
_SIZES = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_layers": MOST_LAYERS,
    "num_heads": 128,
    "num_kv_heads": 128,
    "head_dim": 1 << 10,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 24,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One model: sizes are counts of elements, `max_position_embeddings` counts tokens.

    `bos_token_id` is None and `eos_token_ids` empty where the model declares none. An encoder has
    no RoPE, and `rms_norm_eps` is that of its LayerNorms. Raises ModelError, naming the field, when
    a number is out of range or sizes do not fit together.
    """

    name: str
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float | None  # None: positions are not rotated
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    encoder: Encoder | None = None
    attention_bias: bool = False  # of queries, keys, values and attention's result
    mlp_bias: bool = False
    windows: tuple[int | None, ...] = ()  # of each layer, in tokens; none if it is empty
    attention_scale: float | None = None  # of scores, if not 1 / sqrt(head_dim)
    attention_cap: float | None = None  # of scores
    logit_cap: float | None = None
    experts: Experts | None = None  # in place of the MLP; `intermediate_size` is of each

    def __post_init__(self) -> None:
        if self.architecture not in (known := {**ARCHITECTURES, **ENCODERS}):
            wanted = " or ".join(known)
            raise ModelError(f"{self.name}: architecture", wanted, repr(self.architecture))
        for size, most in _SIZES.items():
            positive_int(self.name, self, size)
            if getattr(self, size) > most:
                raise ModelError(
                    f"{self.name}: {size}", f"at most {most}", shown(getattr(self, size))
                )
        positive_number(self.name, self, "rms_norm_eps")
        self._check_kind()
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"{self.name}: num_kv_heads",
                f"a divisor of num_heads {self.num_heads}",
                str(self.num_kv_heads),
            )
        if self.rope_theta is not None and self.head_dim % 2:
            raise ModelError(
                f"{self.name}: head_dim", "an even number (RoPE turns pairs)", str(self.head_dim)
            )
        for flag in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
            boolean(self.name, self, flag)
        for number in ("attention_scale", "attention_cap", "logit_cap"):
            if getattr(self, number) is not None:
                positive_number(self.name, self, number)
        self._check_experts()
        self._check_windows()
        self._check_tokens()

    def _check_kind(self) -> None:
        """Refuse an encoder with RoPE or without its own values, and a decoder with them."""
        is_encoder = self.architecture in ENCODERS
        if (self.encoder is not None) != is_encoder:
            wanted = "an encoder's values" if is_encoder else "none"
            raise ModelError(f"{self.name}: encoder", wanted, shown(self.encoder))
        if not is_encoder:
            positive_number(self.name, self, "rope_theta")
        elif self.rope_theta is not None or self.rope_scaling is not None:
            what = self.rope_theta if self.rope_scaling is None else self.rope_scaling
            raise ModelError(f"{self.name}: RoPE", "none for an encoder", shown(what))

    def _check_experts(self) -> None:
        """Refuse experts of an architecture without a mixture, and a mixture without experts."""
        known = ARCHITECTURES.get(self.architecture)
        has = known is not None and known.mixture is not None
        if (self.experts is not None) != has:
            raise ModelError(
                f"{self.name}: experts", "how many there are" if has else "none",
                shown(self.experts),
            )  # fmt: skip

    def _check_windows(self) -> None:
        if self.windows and len(self.windows) < self.num_layers:
            wanted = f"one for each of {self.num_layers} layers"
            raise ModelError(f"{self.name}: windows", wanted, str(len(self.windows)))
        for window in self.windows:
            if window is not None and (not is_int(window) or window < 1):
                raise ModelError(f"{self.name}: windows", "positive integers", shown(window))

    def _check_tokens(self) -> None:
        wanted = f"a token id below vocab_size {self.vocab_size}"
        if self.bos_token_id is not None and not self._is_token(self.bos_token_id):
            raise ModelError(f"{self.name}: bos_token_id", wanted, shown(self.bos_token_id))
        for token in self.eos_token_ids:
            if not self._is_token(token):
                raise ModelError(f"{self.name}: eos_token_ids", wanted, shown(token))

    def _is_token(self, token: object) -> bool:
        return is_int(token) and 0 <= token < self.vocab_size

    @property
    def q_size(self) -> int:
        """Elements of all query heads together; hidden_size need not equal it."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Elements of all key heads together; all value heads have as many."""
        return self.num_kv_heads * self.head_dim

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON/msgpack types, for the artifact; `from_dict` is the inverse."""
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default is MISSING or value != field.default:  # what no Llama has is left out
                values[field.name] = _plain(value)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Rebuild from `to_dict`; raises ModelError on a missing, unknown or wrong field."""
        absent = {one.name: one.default for one in fields(cls) if one.default is not MISSING}
        exact_fields("model config", cls, {**absent, **values})
        own: dict[str, Any] = {"eos_token_ids": tuple(values["eos_token_ids"])}
        if (encoder := values.get("encoder")) is not None:
            exact_fields("model config: encoder", Encoder, encoder)
            own["encoder"] = Encoder(**encoder)
        if (experts := values.get("experts")) is not None:
            exact_fields("model config: experts", Experts, experts)
            own["experts"] = Experts(**experts)
        if (scaling := values["rope_scaling"]) is not None:
            own["rope_scaling"] = scaling_of("model config: rope_scaling", scaling)
        if "windows" in values:
            own["windows"] = tuple(values["windows"])
        return cls(**{**values, **own})


def _plain(value: Any) -> Any:
    """Return plain JSON/msgpack types."""
    if isinstance(value, RopeScaling):
        return scaling_values(value)
    if isinstance(value, Encoder):
        return {**asdict(value), "activation": str(value.activation)}
    if isinstance(value, Experts):
        return asdict(value)
    return list(value) if isinstance(value, tuple) else value
