"""A model's configuration: the sizes and constants that define it, checked, without weights.

compiler/model/frontend.py reads it from `config.json`, compiler/model/presets.py has some, and an
artifact stores it as a plain dict. Non-goal: any arithmetic. Chips compute the RoPE frequencies
from these numbers in their own vector arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from chip.ops.opcodes import Function
from compiler.errors import ModelError
from compiler.files import shown
from compiler.model.architecture import ARCHITECTURES, ENCODERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3RopeScaling:
    """Llama 3.1's scaling of the RoPE frequencies; transformers' rope type "llama3".

    Raises ModelError when the numbers cannot describe a scaling.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        _positive_int("rope_scaling", self, "original_max_position_embeddings")
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            _positive_number("rope_scaling", self, name)
        if self.factor < 1:
            raise ModelError("rope_scaling.factor", "at least 1", repr(self.factor))
        if self.low_freq_factor >= self.high_freq_factor:
            raise ModelError(
                "rope_scaling.high_freq_factor",
                f"more than low_freq_factor {self.low_freq_factor!r}",
                repr(self.high_freq_factor),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """What an encoder has that decoders have not: kinds of tokens, and the MLP's function.

    Raises ModelError for no kind of token, or an unknown function.
    """

    type_vocab_size: int
    activation: Function

    def __post_init__(self) -> None:
        _positive_int("encoder", self, "type_vocab_size")
        if self.activation not in list(Function):
            wanted = " or ".join(Function)
            raise ModelError("encoder: activation", wanted, shown(self.activation))
        object.__setattr__(self, "activation", Function(self.activation))


# The largest sizes that are accepted: larger than those of published Llamas, and small enough that
# the model is compiled, or refused for its memory, in bounded time.
_SIZES = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_layers": 256,
    "num_heads": 128,
    "num_kv_heads": 128,
    "head_dim": 1 << 10,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 24,
}
_SMALLEST, _LARGEST = 2.0**-126, 2.0**127  # of a number that the chips hold as fp32


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
    rope_scaling: Llama3RopeScaling | None
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    encoder: Encoder | None = None

    def __post_init__(self) -> None:
        if self.architecture not in (known := {**ARCHITECTURES, **ENCODERS}):
            wanted = " or ".join(known)
            raise ModelError(f"{self.name}: architecture", wanted, repr(self.architecture))
        for size, most in _SIZES.items():
            _positive_int(self.name, self, size)
            if getattr(self, size) > most:
                raise ModelError(
                    f"{self.name}: {size}", f"at most {most}", shown(getattr(self, size))
                )
        _positive_number(self.name, self, "rms_norm_eps")
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
        if not isinstance(self.tie_word_embeddings, bool):
            raise ModelError(
                f"{self.name}: tie_word_embeddings", "a bool", shown(self.tie_word_embeddings)
            )
        self._check_tokens()

    def _check_kind(self) -> None:
        """Refuse an encoder with RoPE or without its own values, and a decoder with them."""
        is_encoder = self.architecture in ENCODERS
        if (self.encoder is not None) != is_encoder:
            wanted = "an encoder's values" if is_encoder else "none"
            raise ModelError(f"{self.name}: encoder", wanted, shown(self.encoder))
        if not is_encoder:
            _positive_number(self.name, self, "rope_theta")
        elif self.rope_theta is not None or self.rope_scaling is not None:
            what = self.rope_theta if self.rope_scaling is None else self.rope_scaling
            raise ModelError(f"{self.name}: RoPE", "none for an encoder", shown(what))

    def _check_tokens(self) -> None:
        wanted = f"a token id below vocab_size {self.vocab_size}"
        if self.bos_token_id is not None and not self._is_token(self.bos_token_id):
            raise ModelError(f"{self.name}: bos_token_id", wanted, shown(self.bos_token_id))
        for token in self.eos_token_ids:
            if not self._is_token(token):
                raise ModelError(f"{self.name}: eos_token_ids", wanted, shown(token))

    def _is_token(self, token: object) -> bool:
        return _is_int(token) and 0 <= token < self.vocab_size  # type: ignore[operator]

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
        values = {**asdict(self), "eos_token_ids": list(self.eos_token_ids)}
        if self.encoder is None:
            del values["encoder"]
        else:
            values["encoder"]["activation"] = str(self.encoder.activation)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Rebuild from `to_dict`; raises ModelError on a missing, unknown or wrong field."""
        encoder = values.get("encoder")
        _exact_fields("model config", cls, {"encoder": None, **values})
        if encoder is not None:
            _exact_fields("model config: encoder", Encoder, encoder)
            encoder = Encoder(**encoder)
        scaling = values["rope_scaling"]
        if scaling is not None:
            _exact_fields("model config: rope_scaling", Llama3RopeScaling, scaling)
            scaling = Llama3RopeScaling(**scaling)
        eos = tuple(values["eos_token_ids"])
        own = {"rope_scaling": scaling, "eos_token_ids": eos, "encoder": encoder}
        return cls(**{**values, **own})


def _exact_fields(what: str, cls: type[Any], data: Mapping[str, Any]) -> None:
    wanted = {field.name for field in fields(cls)}
    if wanted != set(data):
        missing, unknown = sorted(wanted - set(data)), sorted(set(data) - wanted)
        raise ModelError(what, "exactly its own fields", f"missing {missing} and unknown {unknown}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _positive_int(owner: str, config: object, name: str) -> None:
    value = getattr(config, name)
    if not _is_int(value) or value < 1:
        raise ModelError(f"{owner}: {name}", "a positive integer", shown(value))


def _positive_number(owner: str, config: object, name: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ModelError(f"{owner}: {name}", "a positive number", shown(value))
    if not _SMALLEST <= value <= _LARGEST:
        wanted = f"a number from {_SMALLEST:.3g} to {_LARGEST:.3g}"
        raise ModelError(f"{owner}: {name}", wanted, shown(value))
    object.__setattr__(config, name, float(value))  # 10000 and 10000.0 must hash alike
