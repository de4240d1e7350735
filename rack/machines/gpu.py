"""Read a GPU from TOML: `load_gpu("h100-sxm")`, `load_gpu("my.toml")`.

A file has `name`, optionally `inherits` (a shipped GPU's name), and the tables peak (operations a
second, a multiply-add is two), memory, link (each way), efficiency and economics; every value with
its source, as in an LPU's profile (rack/machines/sourced). The three efficiencies are what
`rack.validate gpus` fits to measured times a token: the share of the memory's bandwidth and of the
peak that is reached, and the time that a layer takes beside both.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from compiler.files import shown
from rack.errors import ProfileError
from rack.machines.economics import (
    ECONOMIC_KEYS,
    Economics,
    check_economics,
    economics_of,
)
from rack.machines.sourced import Sourced, flattened, parse, text_of

_FOLDER = Path(__file__).parent / "gpus"
GPU_TABLES = ("peak", "memory", "link", "efficiency", "economics")
MILLE = 1000


class GpuDtype(StrEnum):
    """What weights and the KV cache are stored in, and products are made in where there is a unit.

    MXFP4 is of the weights of experts alone, in 4.25 bits; all else is in 16 bits then.
    """

    FP16 = "fp16"
    FP8 = "fp8"
    INT8 = "int8"
    MXFP4 = "mxfp4"


_RANGES = {
    "peak.fp16": (1, 10**18),
    "peak.fp8": (1, 10**18),
    "peak.int8": (1, 10**18),
    "memory.bytes": (1, 10**15),
    "memory.bytes_per_s": (1, 10**16),
    "link.bytes_per_s": (1, 10**16),
    "efficiency.memory_permille": (1, MILLE),
    "efficiency.compute_permille": (1, MILLE),
    "efficiency.layer_ns": (0, 10**9),
}
_OPTIONAL = ("peak.fp8", "peak.int8")
GPU_KEYS = (*_RANGES, *ECONOMIC_KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What is reached of a data sheet: shares of bandwidth and peak, and seconds beside them.

    `layer_s` is the time of a dense layer of a model on two GPUs or more, where each waits for the
    others twice.
    """

    memory: float
    compute: float
    layer_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its data sheet has it, with what is reached of that."""

    name: str
    peaks: dict[GpuDtype, int]  # operations a second of the units that there are
    memory_bytes: int
    memory_bytes_per_s: int
    link_bytes_per_s: int  # to the other GPUs of its host, each way
    efficiency: Efficiency
    economics: Economics
    sources: dict[str, Sourced] = field(hash=False, compare=False, repr=False)

    def products_in(self, dtype: GpuDtype) -> GpuDtype:
        """Return the type in which products are made: fp16 where it has no unit for `dtype`."""
        return dtype if dtype in self.peaks else GpuDtype.FP16

    def peak(self, dtype: GpuDtype) -> int:
        """Return operations a second on what is stored as `dtype`."""
        return self.peaks[self.products_in(dtype)]

    def ridge(self, dtype: GpuDtype) -> float:
        """Return operations for a byte at which its memory and its peak take equally long."""
        return self.peak(dtype) / self.memory_bytes_per_s

    def to_dict(self) -> dict[str, Any]:
        """Return every value with its grade and source, in JSON's types."""
        return {
            key: {"value": value.value, "grade": value.grade, "source": value.source}
            for key, value in self.sources.items()
        }


def gpu_names() -> tuple[str, ...]:
    """Return the names of the shipped GPUs, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_gpu(name_or_path: str | Path) -> Gpu:
    """Read a shipped GPU by name, or a `.toml` file by path.

    Raises ProfileError, naming file and key, for anything that is not as described above.
    """
    path = _find(str(name_or_path))
    return _built(str(path), *_read(path))


def _read(path: Path) -> tuple[str, dict[str, Sourced]]:
    """Return the file's name, and its values over those that it inherits."""
    document = parse(path)
    name = text_of(path, document, "name")
    values = flattened(path, document, GPU_TABLES, _check_known, _check)
    if "inherits" in document:
        parent = text_of(path, document, "inherits")
        if parent not in gpu_names() or parent == name:
            wanted = f"another one of {', '.join(gpu_names())}"
            raise ProfileError(file=str(path), key="inherits", wanted=wanted, got=shown(parent))
        values = _read(_FOLDER / f"{parent}.toml")[1] | values
    return name, values


def _find(name: str) -> Path:
    if name in gpu_names():
        return _FOLDER / f"{name}.toml"
    if name.endswith(".toml") and os.path.lexists(name):
        return Path(name)
    wanted = f"{', '.join(gpu_names())} or the path of a .toml file"
    raise ProfileError(file=f"{name:.200}", key="gpu", wanted=wanted, got="no such GPU")


def _check_known(file: str, table: str, key: str) -> None:
    if key not in GPU_KEYS:
        near = ", ".join(k.partition(".")[2] for k in GPU_KEYS if k.startswith(f"{table}."))
        raise ProfileError(file=file, key=key, wanted=f"one of {near}", got="an unknown key")


def _check(file: str, key: str, value: object) -> None:
    if key in ECONOMIC_KEYS:
        check_economics(file, key, value)
        return
    least, most = _RANGES[key]
    if type(value) is not int or not least <= value <= most:
        wanted = f"an integer of {least} to {most}"
        raise ProfileError(file=file, key=key, wanted=wanted, got=shown(value))


def _built(file: str, name: str, values: dict[str, Sourced]) -> Gpu:
    for key in _RANGES:
        if key not in values and key not in _OPTIONAL:
            raise ProfileError(file=file, key=key, wanted="a value", got="nothing")
    number = partial(_number, values)
    return Gpu(
        name=name,
        peaks={
            dtype: number(f"peak.{dtype}") for dtype in GpuDtype if f"peak.{dtype}" in values
        },
        memory_bytes=number("memory.bytes"),
        memory_bytes_per_s=number("memory.bytes_per_s"),
        link_bytes_per_s=number("link.bytes_per_s"),
        efficiency=Efficiency(
            memory=number("efficiency.memory_permille") / MILLE,
            compute=number("efficiency.compute_permille") / MILLE,
            layer_s=number("efficiency.layer_ns") / 1e9,
        ),
        economics=economics_of(file, values),
        sources={key: values[key] for key in GPU_KEYS if key in values},
    )  # fmt: skip


def _number(values: dict[str, Sourced], key: str) -> int:
    value = values[key].value
    assert isinstance(value, int), key  # _check saw it
    return value
