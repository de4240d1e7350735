"""The flags that verbs share, each defined once: parent parsers for the parser of a verb.

Every flag of `model_flags` is also a variable and a key of `--config FILE.toml` (rack/run/config).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields

from chip.spec import INT4_GROUPS
from compiler.files import shown
from compiler.pipeline import DTYPES
from rack.commands.verbs import VERBS, called_as
from rack.errors import ConfigError
from rack.machines.profile import profile_names
from rack.reports.costs import Prices
from rack.run.answer_lengths import DEFAULT
from rack.run.config import (
    ENV_PREFIX,
    EXECUTORS,
    FLAG_NAMES,
    TRANSPORTS,
    RunConfig,
    resolve,
)
from rack.system.kubernetes import service_variables
from rack.system.progress import say

MOST_DIGITS = 100  # of an integer; Python would read some thousands


def _of(values: Sequence[str]) -> str:
    """Return a closed set of values in the form of argparse."""
    return f"{{{','.join(values)}}}"


def profile_choices() -> str:
    """Return the values of `--hardware`, as shown in help."""
    return "|".join([*profile_names(), "FILE.toml"])


def _groups() -> dict[str, dict[str, tuple[str, str]]]:
    """Return title -> key of `RunConfig` -> (metavar, help)."""
    return {
        "model": {
            "layers": ("N", "run the first N layers only, with all of the embedding and the head"),
            "weights": (
                "DIR|repeat",
                "config.json and safetensors; a preset without runs on synthetic; repeat: "
                "synthetic, the same in all layers of a kind, and in memory once",
            ),
            "tokenizer": ("DIR", "tokenizer.json, and its chat template, for a preset"),
            "dtype": (_of(DTYPES), "weights and activations; int4: the latter are int8"),
            "int4_group": (
                "|".join(map(str, INT4_GROUPS)),
                f"input rows that share a scale of int4 weights (default {INT4_GROUPS[0]})",
            ),
            "max_model_len": ("N", "context in tokens; the model's, or the largest that fits"),
            "prefill_chunk": ("N", "prompt tokens per prefill step; the largest that fits, to 128"),
            "sequences": ("S", "slots of the KV cache: how many sequences may be in flight"),
            "batch": ("B", "most rows of a decode step, each of another slot"),
            "seed": ("N", "seed of sampling and of synthetic weights"),
        },
        "machine": {
            "hardware": (profile_choices(), "a profile"),
            "layout": (
                "auto|PxT|PxT+H",
                "stages x chips a stage + chips of the head group; auto is the fewest racks",
            ),
        },
        "run": {
            "executor": (
                _of(EXECUTORS),
                "fast: real arithmetic; reference: every instruction, checked, for small models; "
                "timing: cycles only, tokens drawn at random",
            ),
            "transport": (
                _of(TRANSPORTS),
                "ray: an actor a chip; local: all in one process; process: a process a chip, "
                "ZeroMQ without Ray",
            ),
            "returns": ("logits|topk:K", "what the head chips return"),
            "answer_tokens": (
                "N|uniform:A,B|lognormal:MEAN,SIGMA|none",
                "length of answers that nothing else ends, of the timing executor "
                f"(default {DEFAULT})",
            ),
            "step_timeout_s": ("S", "wall seconds a step may take before a chip counts as stalled"),
            "spares": ("N", "chips that start with the rack, to take the places of lost ones"),
        },
    }  # fmt: skip


def verb_parser(
    verb: str, *parents: argparse.ArgumentParser, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Return the parser of a verb with the flags of its parents."""
    return argparse.ArgumentParser(
        prog=called_as(verb), description=VERBS[verb], epilog=epilog, parents=parents
    )


def model_flags(
    *, needed: bool = True, without: Collection[str] = ()
) -> argparse.ArgumentParser:  # fmt: skip
    """Return MODEL, which may be left out unless `needed`, and the flags of `RunConfig`, `without`
    some; absent flags stay None."""
    parser = argparse.ArgumentParser(add_help=False)
    defaults = {field.name: field.default for field in fields(RunConfig)}
    for title, keys in _groups().items():
        group = parser.add_argument_group(title)
        if title == "model":
            group.add_argument(
                "model", metavar="MODEL", nargs=None if needed else "?",
                help="a preset (llama-8b, …) or a folder",
            )  # fmt: skip
        for key, (metavar, text) in keys.items():
            if key in without:
                continue
            flag = "--" + FLAG_NAMES.get(key, key).replace("_", "-")
            told = "" if defaults[key] is None else f" (default {defaults[key]})"
            group.add_argument(flag, dest=key, metavar=metavar, default=None, help=text + told)
    group.add_argument(
        "--config", metavar="FILE.toml",
        help=f"file with any of these as keys; so are variables, {ENV_PREFIX}DTYPE and so on",
    )  # fmt: skip
    return parser


def output_flags(*, json: bool = True, dry_run: bool = True) -> argparse.ArgumentParser:
    """Return the flags of a verb's output."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("output")
    if json:
        group.add_argument("--json", action="store_true", help="print one JSON object at the end")
    if dry_run:
        group.add_argument(
            "--dry-run", action="store_true", help="show what is placed where; start nothing"
        )
    return parser


def cost_flags() -> argparse.ArgumentParser:
    """Return the flags that costs are worked out with."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("cost")
    texts = {
        "usd_per_kwh": ("USD", "price of electricity"),
        "pue": ("RATIO", "power of the whole building over that of the chips"),
        "utilisation": ("SHARE", "of the hours in which the machine makes tokens, 0 to 1"),
    }
    for field in fields(Prices):
        metavar, text = texts[field.name]
        group.add_argument(
            f"--{field.name.replace('_', '-')}", type=float, default=field.default,
            metavar=metavar, help=f"{text} (default %(default)s, an assumption)",
        )  # fmt: skip
    return parser


def prices_of(args: argparse.Namespace) -> Prices:
    """Return what `cost_flags` gave. Raises ConfigError."""
    return Prices(**{field.name: getattr(args, field.name) for field in fields(Prices)})


def count(most: int) -> Callable[[str], int]:
    """Return an argparse type: an integer up to `most`. The verb checks the least."""

    def integer(text: str) -> int:
        digits = text.strip().lstrip("+-")
        value = most + 1 if digits.isdecimal() and len(digits) > MOST_DIGITS else int(text)
        if not -most <= value <= most:
            wanted = f"wanted an integer up to {most:,}"
            raise argparse.ArgumentTypeError(f"{wanted}, got {shown(text)}")
        return value

    integer.__name__ = "int"  # argparse calls the type so where the text is no integer
    return integer


def numbers(text: str, name: str, most: int, what: str) -> list[int]:
    """Parse "1,3,6", the value of a flag. Raises ConfigError; what the least is, the verb says."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        wanted = "wanted whole numbers with commas"
        raise ConfigError(f"{name}: {wanted}, got {shown(text)}") from error
    if max(found) > most:
        raise ConfigError(f"{name}: wanted at most {most} {what}, got {shown(max(found))}")
    return found


def arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse a command line. Exits with 2 through the parser on bad input.

    argparse gives `--flag=--` an empty list for a value, which no verb could use; nor could any
    use a zero byte.
    """
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        flag, values = f"--{name.replace('_', '-')}", value if isinstance(value, list) else [value]
        if value == [] != parser.get_default(name) or [] in values:
            parser.error(f"{flag}: wanted a value, got '--'")
        if any(isinstance(text, str) and "\0" in text for text in values):
            parser.error(f"{flag}: wanted a text without zero bytes, got {shown(value)}")
    return args


def run_config(args: argparse.Namespace) -> RunConfig:
    """Return the configuration from flags, environment and file. Raises ConfigError."""
    if foreign := service_variables(os.environ, ENV_PREFIX):
        say(
            f"NOTE: {', '.join(foreign)}: ignored, as Kubernetes sets them for a service; a pod's "
            f"enableServiceLinks: false leaves them out"
        )
    return resolve(args)


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, RunConfig]:
    """Parse a command line that has `model_flags`. Exits with 2 on bad input."""
    args = arguments(parser, argv)
    try:
        return args, run_config(args)
    except ConfigError as error:
        parser.error(str(error))
