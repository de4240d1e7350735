"""How files have a model's tensors where they do not have each as it is.

An encoder's may have other names. Those of experts, which have the names that `Mixture` gives them
(compiler/model/architecture.py), may be joined: `gate_up_proj` and `down_proj` of all experts. Such
matrices may be MXFP4: blocks of 32 values along K, two E2M1 numbers a byte, with an E8M0 scale each
(OCP Microscaling Formats 1.0). Values of all these forms are exact in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.model import encoder
from compiler.model.architecture import ARCHITECTURES, Mixture
from compiler.model.config import Experts, ModelConfig
from compiler.model.operation import tensor_name

Shape = tuple[int, ...]
Cut = Callable[[tuple[Any, ...], int, int], NDArray[Any]]
"""(handles of tensors in a file, first, stop) to rows, or elements, of one of the model's."""
FLOATS = ("F32", "F16", "BF16")
BYTES = ("U8",)
BLOCK = 32  # values that share a scale
_SCALES = np.array([*(2.0 ** (e - 127) for e in range(255)), np.nan], np.float32)  # E8M0
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of E2M1; the fourth bit is the sign
_VALUES = np.array([*_MAGNITUDES, *(-x for x in _MAGNITUDES)], np.float32)
_PAIRS = np.stack([_VALUES[np.arange(256) & 15], _VALUES[np.arange(256) >> 4]], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor in a file, and the types that it may be of."""

    name: str
    shape: Shape
    dtypes: tuple[str, ...] = FLOATS


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A tensor of the model as a part of some in a file."""

    files: tuple[Stored, ...]
    cut: Cut

    @property
    def name(self) -> str:
        """The name in the file, of the first."""
        return self.files[0].name


@dataclass(frozen=True, slots=True)
class Rows:
    """A part of opened tensors; it is read as a tensor would be, by rows."""

    handles: tuple[Any, ...]
    cut: Cut

    def get_dtype(self) -> str:
        """Return safetensors' name of the type."""
        return str(self.handles[0].get_dtype())

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return self.cut(self.handles, rows.start, rows.stop)


def parts(
    config: ModelConfig, shapes: Mapping[str, Shape], found: Collection[str]
) -> dict[str, Part]:  # fmt: skip
    """Return each tensor as the part of a file's; `found` are the names in the files.

    Of a layer's forms it is the one of which most is there, and the first where nothing is.
    """
    names = {name: name for name in shapes}
    if config.encoder is not None:
        names |= {encoder.canonical(name): name for name in found}
    whole = {
        name: Part(files=(Stored(name=names[name], shape=shape),), cut=_whole)
        for name, shape in shapes.items()
    }
    known = ARCHITECTURES.get(config.architecture)
    mixture = None if known is None else known.mixture
    if mixture is None or config.experts is None:
        return whole
    for index in range(config.num_layers):
        forms = _forms(config, mixture, config.experts, index)
        there = [sum(part.name in found for part in form.values()) for form in forms]
        whole |= forms[there.index(max(there))]
    return whole


def _forms(
    config: ModelConfig, mixture: Mixture, experts: Experts, index: int
) -> list[dict[str, Part]]:  # fmt: skip
    """Return the forms of a layer's experts in files; the first may be: each tensor as it is."""
    joined = _joined(config, mixture, experts, index, packed=False)
    if mixture.turns:
        return [joined, _joined(config, mixture, experts, index, packed=True)]
    router = Stored(
        name=tensor_name(index, "mlp.gate.weight"), shape=(experts.count, config.hidden_size)
    )
    own = tensor_name(index, f"{mixture.router}.weight")
    return [{}, joined | {own: Part(files=(router,), cut=_whole)}]


def _joined(
    config: ModelConfig, mixture: Mixture, experts: Experts, index: int, *, packed: bool
) -> dict[str, Part]:  # fmt: skip
    """Return the matrices and biases of a layer's experts as parts of joined tensors.

    Gate and up lie behind each other, or take turns. Matrices are [experts, columns, K]; those that
    take turns are [experts, K, columns], or `packed` as MXFP4.
    """
    hidden, inter, count = config.hidden_size, config.intermediate_size, experts.count
    beside, step = (1, 2) if mixture.turns else (inter, 1)
    out: dict[str, Part] = {}
    for owner, name, first, step_of, n, k in (
        (mixture.gate, "gate_up_proj", 0, step, 2 * inter, hidden),
        (mixture.up, "gate_up_proj", beside, step, 2 * inter, hidden),
        (mixture.down, "down_proj", 0, 1, hidden, inter),
    ):
        at, blocks = tensor_name(index, f"mlp.experts.{name}"), -(-k // BLOCK)
        matrix: tuple[Stored, ...] = (
            Stored(name=at, shape=(count, k, n) if mixture.turns else (count, n, k)),
        )
        if packed:
            matrix = (
                Stored(name=f"{at}_blocks", shape=(count, n, blocks, BLOCK // 2), dtypes=BYTES),
                Stored(name=f"{at}_scales", shape=(count, n, blocks), dtypes=BYTES),
            )
        bias = (Stored(name=f"{at}_bias", shape=(count, n)),)
        for expert in range(count):
            where, own = _Columns(expert, first, step_of), tensor_name(index, owner.format(expert))
            cut: Cut = where.rows
            if mixture.turns:
                cut = where.unpacked(k) if packed else where.transposed
            out[f"{own}.weight"] = Part(files=matrix, cut=cut)
            if mixture.bias:
                out[f"{own}.bias"] = Part(files=bias, cut=where.rows)
    return out


def _whole(handles: tuple[Any, ...], first: int, stop: int) -> NDArray[Any]:
    rows: NDArray[Any] = handles[0][first:stop]
    return rows


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of a joined tensor that are an expert's: every `step`th from `offset` on."""

    expert: int
    offset: int
    step: int

    def _span(self, first: int, stop: int) -> slice:
        """Return the columns from the first to the last, with those between them."""
        start = self.offset + self.step * first
        return slice(start, max(start, self.offset + self.step * (stop - 1) + 1))

    def rows(self, handles: tuple[Any, ...], first: int, stop: int) -> NDArray[Any]:
        """Read [columns, K], or a bias."""
        found: NDArray[Any] = handles[0][self.expert, self._span(first, stop)]
        return found[:: self.step]

    def transposed(self, handles: tuple[Any, ...], first: int, stop: int) -> NDArray[Any]:
        """Read [K, columns]; return [columns, K]."""
        found: NDArray[Any] = handles[0][self.expert, :, self._span(first, stop)]
        return found[:, :: self.step].T

    def unpacked(self, k: int) -> Cut:
        """Return what reads MXFP4: [columns, K] fp32."""

        def cut(handles: tuple[Any, ...], first: int, stop: int) -> NDArray[Any]:
            blocks, scales = (self.rows((handle,), first, stop) for handle in handles)
            return mxfp4(blocks, scales)[:, :k]

        return cut


def mxfp4(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the values of blocks [rows, n, 16] with scales [rows, n]: [rows, 32 n] fp32.

    The low half of a byte comes first. A scale of 255 makes NaN of its block.
    """
    numbers = _PAIRS[blocks].reshape(*scales.shape, BLOCK)
    with np.errstate(over="ignore"):  # what fp32 does not hold is refused where it is read
        values: NDArray[np.float32] = numbers * _SCALES[scales][..., None]
    return values.reshape(len(blocks), scales.shape[1] * BLOCK)
