"""How files have a model's tensors where they do not have each as it is.

An encoder's may have other names. Those of experts, which have the names that `Mixture` gives them
(compiler/model/architecture.py), may be joined: `gate_up_proj` and `down_proj` of all experts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.model import encoder
from compiler.model.architecture import ARCHITECTURES, Mixture
from compiler.model.config import ModelConfig
from compiler.model.operation import tensor_name

Shape = tuple[int, ...]
Cut = Callable[[Any, int, int], NDArray[Any]]
"""(handle of a tensor in a file, first, stop) to rows, or elements, of one of the model's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A tensor of the model as a part of one in a file: `name` and `shape` are the file's."""

    name: str
    shape: Shape
    cut: Cut


@dataclass(frozen=True, slots=True)
class Rows:
    """A part of an opened tensor; it is read as the tensor itself would be, by rows."""

    handle: Any
    cut: Cut

    def get_dtype(self) -> str:
        """Return safetensors' name of the type."""
        return str(self.handle.get_dtype())

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return self.cut(self.handle, rows.start, rows.stop)


def parts(config: ModelConfig, shapes: dict[str, Shape], found: Collection[str]) -> dict[str, Part]:
    """Return each tensor as the part of a file's; `found` are the names in the files.

    Where they have a tensor in no form, it is the one that it has here.
    """
    names = {name: name for name in shapes}
    if config.encoder is not None:
        names |= {encoder.canonical(name): name for name in found}
    whole = {
        name: Part(name=names[name], shape=shape, cut=_whole) for name, shape in shapes.items()
    }
    known = ARCHITECTURES.get(config.architecture)
    mixture = None if known is None else known.mixture
    if mixture is None or config.experts is None:
        return whole
    for index in range(config.num_layers):
        joined = _joined(config, mixture, index)
        if any(part.name in found for part in joined.values()):
            whole |= joined
    return whole


def _whole(handle: Any, first: int, stop: int) -> NDArray[Any]:
    rows: NDArray[Any] = handle[first:stop]
    return rows


def _joined(config: ModelConfig, mixture: Mixture, index: int) -> dict[str, Part]:
    """Return a layer's tensors as transformers 5 joins them: the gate's columns, then those of up.

    Matrices are [experts, columns, K].
    """
    assert config.experts is not None
    count, hidden, inter = config.experts.count, config.hidden_size, config.intermediate_size

    def at(name: str) -> str:
        return tensor_name(index, name)

    out = {
        at(f"{mixture.router}.weight"): Part(
            name=at("mlp.gate.weight"), shape=(count, hidden), cut=_whole
        )
    }
    up, down = (count, 2 * inter, hidden), (count, hidden, inter)
    for expert in range(count):
        for owner, name, shape, offset in (
            (mixture.gate, "gate_up_proj", up, 0), (mixture.up, "gate_up_proj", up, inter),
            (mixture.down, "down_proj", down, 0),
        ):  # fmt: skip
            out[at(f"{owner.format(expert)}.weight")] = Part(
                name=at(f"mlp.experts.{name}"), shape=shape, cut=_of_expert(expert, offset)
            )
    return out


def _of_expert(expert: int, offset: int) -> Cut:
    """Return what reads an expert's rows from `offset` on."""
    return lambda handle, first, stop: np.asarray(handle[expert, offset + first : offset + stop])
