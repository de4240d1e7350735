"""The configuration of a run: flags, environment, file and defaults give one `RunConfig`.

Precedence: flag, then environment (`LPU_RACK_DTYPE`, …), then `--config FILE.toml`, then default.
An unknown key or variable is an error, except variables that Kubernetes sets (`system.kubernetes`).
Every result has the resolved configuration.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from compiler.errors import one_line
from compiler.files import printable, shown
from compiler.regular import read_file
from rack.errors import ConfigError
from rack.run.answer_lengths import answer_lengths
from rack.system.kubernetes import service_variables

EXECUTORS = ("fast", "reference", "timing")
TRANSPORTS = ("ray", "local", "process")
ENV_PREFIX = "LPU_RACK_"
MOST_FILE = 1 << 20  # bytes of a configuration file
MOST_TEXT = 4096  # characters of a value: as long as a path may be
MOST_TOP_K = 1024
MOST_TOKENS = 1 << 20  # that a flag may ask for
MOST_INTEGER = 1 << 62
MOST_SPARES = 4096
FLAG_NAMES = {"returns": "return"}  # keys whose flag has another name
_CHOICES = {"executor": EXECUTORS, "transport": TRANSPORTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One run of one model on one machine. Raises ConfigError for values out of range."""

    model: str
    weights: str | None = None
    dtype: str = "int8"
    int4_group: int | None = None
    hardware: str = "lesson"
    layout: str = "auto"
    executor: str = "fast"
    transport: str = "ray"
    max_model_len: int | None = None
    prefill_chunk: int | None = None
    sequences: int = 1
    batch: int = 1
    layers: int | None = None
    seed: int = 0
    returns: str = "logits"
    step_timeout_s: float = 120.0
    spares: int = 0
    tokenizer: str | None = None
    answer_tokens: str | None = None
    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for key in KEYS:
            if (value := getattr(self, key)) is not None:
                _check(FLAG_NAMES.get(key, key), key, value)
        if self.answer_tokens is not None and self.executor != "timing":
            raise ConfigError(
                "answer_tokens: wanted --executor timing, whose tokens are drawn at random; "
                f"with {self.executor} the model ends its answers"
            )
        if self.spares and (self.executor == "timing" or self.transport == "local"):
            got = "--executor timing" if self.executor == "timing" else "--transport local"
            raise ConfigError(f"spares: wanted chips in processes that can be lost, got {got}")

    @property
    def top_k(self) -> int:
        """K of `--return topk:K`, 0 for logits."""
        if self.returns == "logits":
            return 0
        return int(self.returns.removeprefix("topk:"))

    def asked(self, name: str) -> bool:
        """Say whether a flag, a variable or the file gave a key, or it differs from its default."""
        default = next(key.default for key in fields(self) if key.name == name)
        return name in self.given or getattr(self, name) != default

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved configuration, for reports."""
        values = asdict(self)
        del values["given"]
        return values


KEYS = tuple(key.name for key in fields(RunConfig) if key.name != "given")
"""The keys that flags, variables and files may give."""


def resolve(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> RunConfig:
    """Combine flags, environment, file and defaults.

    Raises ConfigError, which names the wrong variable, or else the key.
    """
    environ = os.environ if environ is None else environ
    given: dict[str, tuple[str, Any]] = {}  # key -> what to call it, and its value
    if args.config is not None:
        path = Path(args.config)
        given |= {key: (FLAG_NAMES.get(key, key), value) for key, value in _file(path).items()}
    foreign = service_variables(environ, ENV_PREFIX)
    for variable, text in environ.items():
        key = variable.removeprefix(ENV_PREFIX).lower()
        if variable.startswith(ENV_PREFIX) and key != "test_models" and variable not in foreign:
            if key not in KEYS:
                raise ConfigError(f"{variable}: unknown; known: {_variables()}")
            given[key] = variable, text
    for key in KEYS:
        if (value := getattr(args, key, None)) is not None:
            given[key] = FLAG_NAMES.get(key, key), value
    values = {key: _typed(label, key, value) for key, (label, value) in given.items()}
    for key, (label, _) in given.items():
        _check(label, key, values[key])
    return RunConfig(**values, given=frozenset(given))


def _variables() -> str:
    return ", ".join(ENV_PREFIX + key.upper() for key in KEYS)


def _file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(read_file(path, MOST_FILE).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # bad TOML, bad UTF-8, deep nesting
        got = f"{error!s:.400}"
        raise ConfigError(f"{one_line(printable(path))}: wanted a TOML file, got {got}") from error
    unknown = sorted(set(values) - set(KEYS))
    if unknown:
        raise ConfigError(f"{path}: unknown key {unknown[0]:.80}; known: {', '.join(KEYS)}")
    return values


def _typed(label: str, key: str, value: Any) -> Any:
    kinds: dict[str, type] = {
        "int4_group": int, "layers": int, "max_model_len": int, "prefill_chunk": int, "seed": int,
        "sequences": int, "batch": int, "spares": int, "step_timeout_s": float,
    }  # fmt: skip
    kind = kinds.get(key, str)
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    try:
        if isinstance(value, str) or (kind is float and type(value) is int):
            return kind(value)
    except (ValueError, OverflowError):
        pass
    raise ConfigError(f"{label}: wanted {kind.__name__}, got {shown(value)}")


def _check(label: str, key: str, value: Any) -> None:
    """Raise ConfigError for a value out of range."""
    if isinstance(value, str) and (not 1 <= len(value) <= MOST_TEXT or "\0" in value):
        wanted = f"1 to {MOST_TEXT} characters, none of them zero"
        raise ConfigError(f"{label}: wanted {wanted}, got {shown(value)}")
    if key in _CHOICES and value not in _CHOICES[key]:
        wanted = f"one of {', '.join(_CHOICES[key])}"
        raise ConfigError(f"{label}: wanted {wanted}, got {shown(value)}")
    counts = ("int4_group", "layers", "max_model_len", "prefill_chunk", "sequences", "batch")
    if key in counts and abs(value) > MOST_INTEGER:
        raise ConfigError(f"{label}: wanted an integer up to {MOST_INTEGER}, got {shown(value)}")
    if key == "spares" and not 0 <= value <= MOST_SPARES:
        raise ConfigError(f"{label}: wanted an integer in 0..{MOST_SPARES}, got {shown(value)}")
    if key == "seed" and not 0 <= value < 1 << 64:
        raise ConfigError(f"{label}: wanted an integer in 0..2^64-1, got {shown(value)}")
    if key == "step_timeout_s" and not 0 < value < math.inf:
        raise ConfigError(f"{label}: wanted more than 0, got {value}")
    if key == "answer_tokens":
        answer_lengths(value)
    if key == "returns" and value != "logits":
        match = re.fullmatch(r"topk:([0-9]{1,9})", value)
        if match is None or int(match[1]) < 1:
            raise ConfigError(f"{label}: wanted logits or topk:K, got {shown(value)}")
        if int(match[1]) > MOST_TOP_K:
            raise ConfigError(f"{label}: wanted topk:K with K up to {MOST_TOP_K}, got {value!r}")
