"""What a run is made from: flags, environment, file and defaults, resolved once into `RunConfig`.

Precedence: flag, then environment (`LPU_RACK_DTYPE`, …), then `--config FILE.toml`, then default.
An unknown key or variable is an error, but for those that Kubernetes sets (rack/kubernetes.py).
The resolved configuration goes into every result.
"""

from __future__ import annotations

import argparse
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rack.answers import DEFAULT, answer_lengths
from rack.errors import ConfigError
from rack.kubernetes import service_variables
from rack.progress import say

EXECUTORS = ("fast", "reference", "timing")
TRANSPORTS = ("ray", "local", "process")
ENV_PREFIX = "LPU_RACK_"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One run of one model on one machine. Raises ConfigError for values out of range."""

    model: str
    weights: str | None = None
    dtype: str = "int8"
    hardware: str = "lesson"
    layout: str = "auto"
    executor: str = "fast"
    transport: str = "ray"
    max_model_len: int | None = None
    prefill_chunk: int | None = None
    seed: int = 0
    returns: str = "logits"
    step_timeout_s: float = 120.0
    tokenizer: str | None = None
    answer_tokens: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("executor", EXECUTORS), ("transport", TRANSPORTS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name}: wanted one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if not 0 < self.step_timeout_s < math.inf:
            raise ConfigError(f"step_timeout_s: wanted more than 0, got {self.step_timeout_s}")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed: wanted an integer in 0..2^64-1, got {self.seed}")
        _ = self.top_k
        if self.answer_tokens is not None:
            answer_lengths(self.answer_tokens)
            if self.executor != "timing":
                raise ConfigError(
                    "answer_tokens: wanted --executor timing, whose tokens are drawn at random; "
                    f"with {self.executor} the model ends its answers"
                )

    @property
    def top_k(self) -> int:
        """K of `--return topk:K`, 0 for logits."""
        if self.returns == "logits":
            return 0
        kind, _, count = self.returns.partition(":")
        if kind != "topk" or not count.isdecimal() or int(count) < 1:
            raise ConfigError(f"return: wanted logits or topk:K, got {self.returns!r}")
        return int(count)

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved configuration, for reports."""
        return asdict(self)


_HELP = {
    "weights": "folder with config.json and safetensors; a preset without it runs on synthetic",
    "dtype": "int8 or fp16",
    "hardware": "lesson, groqrack, groqrack-drift (clocks stray) or the path of a .toml profile",
    "layout": "auto, or PxT or PxT+H: stages x chips a stage + chips of the head group",
    "executor": f"{' or '.join(EXECUTORS)}; timing has no data and draws tokens at random",
    "transport": "ray (an actor a chip), process (ZeroMQ without Ray) or local (one process)",
    "max_model_len": "context in tokens; default: the model's, or the largest that fits",
    "prefill_chunk": "prompt tokens per prefill step; default: the largest that fits, up to 128",
    "seed": "seed of sampling and of synthetic weights",
    "returns": "what the head chips return: logits or topk:K",
    "tokenizer": "folder with tokenizer.json, and the chat template with it, for a preset",
    "answer_tokens": "length of answers that nothing else ends, of the timing executor: N, "
    f"uniform:A,B, lognormal:MEAN,SIGMA or none; default {DEFAULT}",
    "step_timeout_s": "wall seconds a step may take before the run is given up",
}
_FLAGS = {"returns": "--return"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and the flags that every verb shares; absent flags stay None."""
    parser.add_argument("model", metavar="MODEL", help="a preset (llama-8b, …) or a model folder")
    for field in fields(RunConfig):
        if field.name == "model":
            continue
        flag = _FLAGS.get(field.name, "--" + field.name.replace("_", "-"))
        shown = "" if field.default is None else f" (default {field.default})"
        parser.add_argument(flag, dest=field.name, default=None, help=_HELP[field.name] + shown)
    parser.add_argument("--config", metavar="FILE.toml", help="file with any of these as keys")


def resolve(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> RunConfig:
    """Combine flags, environment, file and defaults. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    known = {field.name: field for field in fields(RunConfig)}
    values: dict[str, Any] = {}
    if args.config:
        values |= _file(Path(args.config), known)
    foreign = service_variables(environ, ENV_PREFIX)
    for variable, text in environ.items():
        name = variable.removeprefix(ENV_PREFIX).lower()
        if variable.startswith(ENV_PREFIX) and name != "test_models" and variable not in foreign:
            if name not in known:
                raise ConfigError(f"{variable}: unknown; known: {_variables(known)}")
            values[name] = text
    for name in known:
        if getattr(args, name, None) is not None:
            values[name] = getattr(args, name)
    return RunConfig(**{name: _typed(name, value) for name, value in values.items()})


def _variables(known: Mapping[str, Any]) -> str:
    return ", ".join(ENV_PREFIX + name.upper() for name in known)


def _file(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # bad TOML and bad UTF-8
        raise ConfigError(f"{path}: wanted a TOML file, got {error}") from error
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"{path}: unknown key {unknown[0]}; known: {', '.join(known)}")
    return values


def _typed(name: str, value: Any) -> Any:
    kinds: dict[str, type] = {
        "max_model_len": int, "prefill_chunk": int, "seed": int, "step_timeout_s": float,
    }  # fmt: skip
    kind = kinds.get(name, str)
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    try:
        if isinstance(value, str) or (kind is float and type(value) is int):
            return kind(value)
    except (ValueError, OverflowError):
        pass
    raise ConfigError(f"{name}: wanted {kind.__name__}, got {value!r}")


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, RunConfig]:
    """Parse a command line that has `add_flags`. Exits with 2 through the parser on bad input."""
    args = parser.parse_args(argv)
    if foreign := service_variables(os.environ, ENV_PREFIX):
        say(
            f"NOTE: {', '.join(foreign)}: ignored, as Kubernetes sets them for a service; a pod's "
            f"enableServiceLinks: false leaves them out"
        )
    try:
        return args, resolve(args)
    except ConfigError as error:
        parser.error(str(error))
