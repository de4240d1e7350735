"""Sources of weights: safetensors files, or seeded synthetic values.

A `WeightsRef` is small and picklable. Every chip gets it, opens it and reads only its own rows.
Rows of a Hugging Face matrix are output columns (its shape is [N, K]), so a chip's share is a
contiguous slice of a memory-mapped file. This is the one place that reads safetensors.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  (safetensors needs it to give BF16 tensors to NumPy)
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from chip.kernels import synthetic
from chip.kernels.packed import groups_of, quantize_groups, write_packed
from chip.kernels.quant import F16_MAX, quantize_weight, write_tiles
from compiler.errors import ModelError
from compiler.files import is_file, parse_object, printable, require_json, shown
from compiler.model import encoder
from compiler.model.config import ModelConfig
from compiler.model.graph import build_graph
from compiler.model.layer import EMBEDDING, LM_HEAD, embeddings
from compiler.model.operation import GraphOp
from compiler.model.stored import Rows, Stored, parts

# A value is not finite where all bits of its exponent are set.
_EXPONENTS: dict[str, np.unsignedinteger[Any]] = {
    "F32": np.uint32(0x7F800000), "F16": np.uint16(0x7C00), "BF16": np.uint16(0x7F80),
}  # fmt: skip
_BLOCK_ELEMENTS = 1 << 22  # fp32 elements converted at a time: 16 MiB beside the int8 result

F32 = NDArray[np.float32]
F16 = NDArray[np.float16]
I8 = NDArray[np.int8]


def required_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape by its Hugging Face name: [N, K] matrices, [n] vectors.

    `lm_head.weight` is absent where it is tied to the embedding.
    """
    tensors: dict[str, tuple[int, ...]] = {**embeddings(config)}
    graph = build_graph(config)
    for ops in (*graph.layers, graph.head):
        tensors |= _shapes(ops)
    if config.tie_word_embeddings:
        tensors.pop(LM_HEAD, None)
    return tensors


def first_of_kind(config: ModelConfig) -> dict[str, str]:
    """Return for every layer's tensors those in their places in the first layer of its kind.

    Layers are of one kind if their tensors have the same shapes and they see as far.
    """
    firsts: dict[Any, list[str]] = {}
    found: dict[str, str] = {}
    for index, ops in enumerate(build_graph(config).layers):
        shapes = _shapes(ops)
        window = config.windows[index] if config.windows else None
        first = firsts.setdefault((window, *shapes.values()), list(shapes))
        found |= zip(shapes, first, strict=True)
    return found


def _shapes(ops: Iterable[GraphOp]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of some operations."""
    shapes: dict[str, tuple[int, ...]] = {}
    for op in ops:
        for tensor in op.tensors:
            shapes[tensor.name] = (tensor.rows, op.in_features) if op.is_product else (tensor.rows,)
        shapes |= {bias.name: (bias.rows,) for bias in op.biases}
        shapes |= {tensor.name: (tensor.rows,) for _, tensor in op.vectors}
    return shapes


class WeightSource(Protocol):
    """Opened weights. Names are Hugging Face names; a tied LM head answers to its own name.

    All arrays are the caller's own copies. Raises ModelError for an unknown name, and for a value
    that is not finite or too large for fp16, with its row and column. `notices` name the tensors
    that are not read.
    """

    notices: tuple[str, ...]

    def check_finite(self, name: str) -> None:
        """Refuse a matrix with a value that is not finite. Nothing is converted."""

    def f32_rows(self, name: str, start: int, stop: int) -> F32:
        """Return rows [start, stop) of a matrix: [stop - start, K] float32."""

    def f16_rows(self, name: str, start: int, stop: int) -> F16:
        """Return rows [start, stop) as [stop - start, K] float16, rounded to nearest even."""

    def vector(self, name: str) -> F32:
        """Return a whole vector: [n] float32."""

    def int8_rows(self, name: str, start: int, stop: int) -> tuple[I8, F32]:
        """Return rows [start, stop) as [stop - start, K] int8, and their scales as float32."""

    def fill_int8(self, name: str, start: int, stop: int, block: I8, at: int) -> F32:
        """Quantise rows [start, stop) into a tiled block from column `at` on; return their scales.

        block: [ceil(K / 320), columns, 320] (`tile_weights` of chip.kernels.quant).
        """

    def int4_rows(self, name: str, start: int, stop: int, group: int) -> tuple[I8, F32]:
        """Return rows [start, stop) as [stop - start, K] in -7..7, and scales [groups, rows]."""

    def fill_int4(
        self, name: str, start: int, stop: int, group: int, block: I8, at: int
    ) -> F32:  # fmt: skip
        """Quantise rows [start, stop) into a packed block from column `at` on; return their scales.

        block: [ceil(K / 320), vectors, 320] (chip.kernels.packed); scales: [groups, rows].
        """

    def describe(self) -> str:
        """Say in a few words where the numbers come from, for reports."""


class WeightsKind(Enum):
    """Where weights come from."""

    SAFETENSORS = "safetensors"
    SYNTHETIC = "synthetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsRef:
    """A reference to weights, cheap to make and to pickle; `open` opens them.

    `folder` is set for SAFETENSORS only, `seed` for SYNTHETIC only. `of_layers` is how many layers
    the whole model has, where `config` has only the first of them. With `repeat`, synthetic layers
    of one kind have the same values.
    """

    kind: WeightsKind
    config: ModelConfig
    folder: Path | None
    seed: int | None
    of_layers: int | None = None
    repeat: bool = False

    @classmethod
    def from_folder(cls, config: ModelConfig, folder: str | Path) -> WeightsRef:
        """Return a reference to a folder of safetensors; nothing is read yet."""
        path = Path(folder).absolute()  # another process may have another working directory
        return cls(kind=WeightsKind.SAFETENSORS, config=config, folder=path, seed=None)

    @classmethod
    def synthetic(cls, config: ModelConfig, seed: int, *, repeat: bool = False) -> WeightsRef:
        """Return a reference to seeded synthetic weights."""
        return cls(kind=WeightsKind.SYNTHETIC, config=config, folder=None, seed=seed, repeat=repeat)

    def open(self) -> WeightSource:
        """Open the weights; check every tensor's presence, shape and type. Raises ModelError."""
        if self.kind is WeightsKind.SYNTHETIC:
            assert self.seed is not None
            return _Synthetic(self)
        assert self.folder is not None
        return _Safetensors(self)

    def digest_rows(self, name: str) -> str | None:
        """Return the SHA-256 of a matrix as its file has it; None for synthetic weights.

        Raises ModelError as `open` does.
        """
        source = self.open()
        return source.digest_rows(name) if isinstance(source, _Safetensors) else None

    def describe(self) -> str:
        """Say in a few words where the numbers come from, for reports."""
        if self.kind is WeightsKind.SYNTHETIC:
            same = ", the same in all layers of a kind" if self.repeat else ""
            return f"SYNTHETIC weights of {self.title} (seed {self.seed}{same}): text is noise"
        assert self.folder is not None
        return f"weights of {self.title} from {printable(self.folder)}"

    @property
    def title(self) -> str:
        """The model's name, with what is left of its layers."""
        if self.of_layers is None:
            return self.config.name
        return f"{self.config.name}, the first {self.config.num_layers} of {self.of_layers} layers"


class _Checked:
    """The checks that both sources share: names, tying and ranges."""

    notices: tuple[str, ...] = ()

    def __init__(self, config: ModelConfig) -> None:
        self._shapes = required_tensors(config)
        self._tied = config.tie_word_embeddings

    def _matrix(self, name: str, start: int, stop: int) -> tuple[str, int]:
        """Return the stored name and K; rows out of range are the caller's bug."""
        name, shape = self._find(name)
        assert len(shape) == 2, (name, shape)
        assert 0 <= start <= stop <= shape[0], (name, shape, start, stop)
        return name, shape[1]

    def _find(self, name: str) -> tuple[str, tuple[int, ...]]:
        if name == LM_HEAD and self._tied:
            name = EMBEDDING
        if name not in self._shapes:
            raise ModelError(f"tensor {name}", "one that the model has", "an unknown name")
        return name, self._shapes[name]


class _Synthetic(_Checked):
    """Values computed from (seed, name, row, column) alone, so that no layout can change them."""

    def __init__(self, ref: WeightsRef) -> None:
        assert ref.seed is not None
        super().__init__(ref.config)
        self._ref = ref
        self._seed = ref.seed
        self._first = first_of_kind(ref.config) if ref.repeat else {}

    def _find(self, name: str) -> tuple[str, tuple[int, ...]]:
        name, shape = super()._find(name)
        return self._first.get(name, name), shape

    def f32_rows(self, name: str, start: int, stop: int) -> F32:
        name, k = self._matrix(name, start, stop)
        return synthetic.f32_rows(self._seed, name, start, stop - start, k)

    def f16_rows(self, name: str, start: int, stop: int) -> F16:
        return self.f32_rows(name, start, stop).astype(np.float16)

    def check_finite(self, name: str) -> None:
        self._find(name)

    def vector(self, name: str) -> F32:
        name, shape = self._find(name)
        assert len(shape) == 1, (name, shape)
        return synthetic.vector(self._seed, name, shape[0])

    def int8_rows(self, name: str, start: int, stop: int) -> tuple[I8, F32]:
        name, k = self._matrix(name, start, stop)
        rows = (self._seed, name, start, stop - start, k)
        return synthetic.int8_rows(*rows), synthetic.scales(*rows)

    def fill_int8(self, name: str, start: int, stop: int, block: I8, at: int) -> F32:
        name, k = self._matrix(name, start, stop)
        rows = (self._seed, name, start, stop - start, k)
        synthetic.fill_tiled(*rows, block, at)
        return synthetic.scales(*rows)

    def int4_rows(self, name: str, start: int, stop: int, group: int) -> tuple[I8, F32]:
        name, k = self._matrix(name, start, stop)
        rows = (self._seed, name, start, stop - start, k)
        return synthetic.int4_rows(*rows), synthetic.int4_scales(*rows, group)

    def fill_int4(
        self, name: str, start: int, stop: int, group: int, block: I8, at: int
    ) -> F32:  # fmt: skip
        name, k = self._matrix(name, start, stop)
        rows = (self._seed, name, start, stop - start, k)
        write_packed(synthetic.int8_rows(*rows), block, at)  # which takes their low four bits
        return synthetic.int4_scales(*rows, group)

    def describe(self) -> str:
        return self._ref.describe()


class _Safetensors(_Checked):
    """Memory-mapped files; a read touches the pages of its own rows only."""

    def __init__(self, ref: WeightsRef) -> None:
        config, folder = ref.config, ref.folder
        assert folder is not None
        super().__init__(config)
        self._ref = ref
        others = config.encoder is not None or config.experts is not None  # names in files
        named, files = _tensor_files(folder, [] if others else list(self._shapes))
        opened = {path: _open_file(path) for path in files}
        found = _all_tensors(opened)
        self._parts = parts(config, self._shapes, found)
        if others:
            names = [one.name for part in self._parts.values() for one in part.files]
            named = {name: found.get(name, files[0]) for name in names}
        self._refuse_unknown(found if config.encoder is None else self._encoder_tensors(found))
        self._paths = {name: named[part.name] for name, part in self._parts.items()}
        self._slices = {
            name: Rows(
                tuple(
                    _checked_slice(named[one.name], opened[named[one.name]], one)
                    for one in part.files
                ),
                part.cut,
            )
            for name, part in self._parts.items()
        }
        if self._tied and LM_HEAD in found:
            ignored = "is not read: tie_word_embeddings says that the embedding is the head"
            self.notices = (f"{printable(found[LM_HEAD])}: {LM_HEAD} {ignored}",)

    def _encoder_tensors(self, found: dict[str, Path]) -> dict[str, Path]:
        """Return the encoder's tensors; say which others there are."""
        unused = {name: path for name, path in found.items() if encoder.is_unused(name)}
        if unused:
            first, path = next(iter(unused.items()))
            more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
            ignored = "no part of the encoder, are not read: hidden states are what it gives"
            self.notices = (f"{printable(path)}: {first}{more}, {ignored}",)
        return {name: found[name] for name in found if name not in unused}

    def _refuse_unknown(self, found: Mapping[str, Path]) -> None:
        """Refuse tensors that would change the arithmetic if they were used: biases, adapters."""
        config = self._ref.config
        layers = self._ref.of_layers or config.num_layers  # with those that are not run
        whole = replace(config, num_layers=layers, windows=())
        of_files = parts(whole, required_tensors(whole), found).values()
        known = {one.name for part in of_files for one in part.files}
        for name, path in found.items():
            redundant = name.endswith(".rotary_emb.inv_freq") or (self._tied and name == LM_HEAD)
            if name not in known and not redundant:
                raise ModelError(
                    f"{path}: {name}", "only tensors of this architecture", "an unknown one"
                )

    def f32_rows(self, name: str, start: int, stop: int) -> F32:
        name, _ = self._matrix(name, start, stop)
        return self._finite(name, self._f32(name, start, stop), start)

    def f16_rows(self, name: str, start: int, stop: int) -> F16:
        rows = self.f32_rows(name, start, stop)
        too_large = np.abs(rows) > F16_MAX
        if too_large.any():
            self._refuse_value(name, too_large, rows, start, f"at most {F16_MAX:.0f} for fp16")
        return rows.astype(np.float16)

    def vector(self, name: str) -> F32:
        name, shape = self._find(name)
        assert len(shape) == 1, (name, shape)
        return self._finite(name, self._f32(name, 0, shape[0]), 0)

    def int8_rows(self, name: str, start: int, stop: int) -> tuple[I8, F32]:
        name, k = self._matrix(name, start, stop)
        values, scales = np.empty((stop - start, k), np.int8), np.empty(stop - start, np.float32)
        for first, last in _blocks(start, stop, k):
            block = slice(first - start, last - start)
            values[block], scales[block] = quantize_weight(self.f32_rows(name, first, last))
        return values, scales

    def fill_int8(self, name: str, start: int, stop: int, block: I8, at: int) -> F32:
        values, scales = self.int8_rows(name, start, stop)
        write_tiles(values, block, at)
        return scales

    def int4_rows(self, name: str, start: int, stop: int, group: int) -> tuple[I8, F32]:
        name, k = self._matrix(name, start, stop)
        values = np.empty((stop - start, k), np.int8)
        scales = np.empty((groups_of(k, group), stop - start), np.float32)
        for first, last in _blocks(start, stop, k):
            block = slice(first - start, last - start)
            found = quantize_groups(self.f32_rows(name, first, last), group)
            values[block], scales[:, block] = found
        return values, scales

    def fill_int4(
        self, name: str, start: int, stop: int, group: int, block: I8, at: int
    ) -> F32:  # fmt: skip
        values, scales = self.int4_rows(name, start, stop, group)
        write_packed(values, block, at)
        return scales

    def check_finite(self, name: str) -> None:
        name, (rows, k) = self._find(name)
        exponent = _EXPONENTS[self._slices[name].get_dtype()]
        for first, last in _blocks(0, rows, k):
            bits = self._slices[name][first:last].view(exponent.dtype)
            if ((bits & exponent) == exponent).any():
                self.f32_rows(name, first, last)  # finds which, and raises

    def digest_rows(self, name: str) -> str:
        """Return the SHA-256 of a matrix as it is stored, row after row."""
        name, k = self._matrix(name, 0, 0)
        (rows, _), step = self._shapes[name], max(1, _BLOCK_ELEMENTS // k)
        digest = hashlib.sha256()
        for first in range(0, rows, step):
            block: Any = self._slices[name][first : min(first + step, rows)]
            digest.update(block.view(np.uint8))
        return digest.hexdigest()

    def describe(self) -> str:
        return self._ref.describe()

    def _f32(self, name: str, start: int, stop: int) -> F32:
        rows: NDArray[Any] = self._slices[name][start:stop]
        return rows.astype(np.float32, copy=False)  # exact from F16 and BF16

    def _finite(self, name: str, rows: F32, start: int) -> F32:
        finite = np.isfinite(rows)
        if not finite.all():
            self._refuse_value(name, ~finite, rows, start, "a finite value")
        return rows

    def _refuse_value(
        self, name: str, bad: NDArray[np.bool_], rows: F32, start: int, wanted: str
    ) -> None:
        """Refuse the first bad value of rows from `start` on, by row and column."""
        at = tuple(map(int, np.argwhere(bad)[0]))
        place = f"element {at[0]}" if len(at) == 1 else f"row {start + at[0]}, column {at[1]}"
        stored = self._parts[name].name
        tensor = name if stored == name else f"{stored}, as {name}"
        what = f"{self._paths[name]}: {tensor}: {place}"
        raise ModelError(what, wanted, repr(float(rows[at])))


def _blocks(start: int, stop: int, k: int) -> Iterator[tuple[int, int]]:
    """Cut rows of k elements into blocks, which are converted one at a time."""
    step = max(1, _BLOCK_ELEMENTS // k)
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def _tensor_files(folder: Path, names: list[str]) -> tuple[dict[str, Path], list[Path]]:
    """Return the file of each tensor, and every file that holds some.

    A single file wins over an index, as in transformers.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    has_index = is_file(index)
    if is_file(single):
        return dict.fromkeys(names, single), [single]
    if not has_index:
        raise ModelError(str(folder), f"{single.name} or {index.name}", "neither")
    content = require_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(str(index), "an object with a weight_map", "none")
    for name in [*names, *weight_map]:
        shard = weight_map.get(name)
        if not isinstance(shard, str) or Path(shard).name != shard:
            wanted = f"the file name of {name}"
            raise ModelError(
                f"{index}: weight_map", wanted, "nothing" if shard is None else shown(shard)
            )
    paths = {name: folder / shard for name, shard in weight_map.items()}
    return paths, sorted({*paths.values()})


def _open_file(path: Path) -> Any:
    """Map one file; the library checks that the header covers exactly the file's bytes."""
    if not is_file(path):
        raise ModelError(str(path), "a file", "nothing")
    try:
        size = path.stat().st_size
        opened = safe_open(path, framework="numpy")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            parse_object(str(path), file.read(length))  # the library takes a name that comes twice
    except SafetensorError as error:
        got = f"{size} bytes ({error})"
        raise ModelError(str(path), f"a whole safetensors file{_whole_size(path)}", got) from None
    except OSError as error:
        got = error.strerror or str(error)
        raise ModelError(str(path), "a file that can be read", got) from None
    return opened


def _whole_size(path: Path) -> str:
    """Return for an error the length that a broken file's header states, if it can be read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, 100_000_000)))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__"]
            return f" of {8 + length + max(map(operator.index, ends), default=0)} bytes"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return ""


def _all_tensors(files: Mapping[Path, Any]) -> dict[str, Path]:
    """Return the file of each tensor. Raises ModelError if two files have one."""
    out: dict[str, Path] = {}
    for path, file in files.items():
        for name in sorted(file.keys()):
            if name in out:
                raise ModelError(f"{path}: {name}", "it in one file", f"it in {out[name].name} too")
            out[name] = path
    return out


def _checked_slice(path: Path, file: Any, stored: Stored) -> Any:
    name, wanted = stored.name, stored.shape
    if name not in file.keys():  # noqa: SIM118  (the handle is not a mapping)
        raise ModelError(f"{path}: {name}", f"shape {list(wanted)}", "no such tensor")
    handle = file.get_slice(name)
    if handle.get_dtype() not in stored.dtypes:
        raise ModelError(f"{path}: {name}", " or ".join(stored.dtypes), handle.get_dtype())
    if tuple(handle.get_shape()) != wanted:
        raise ModelError(f"{path}: {name}", f"shape {list(wanted)}", str(handle.get_shape()))
    return handle
