"""The types of a model's graph: operations, their inputs and outputs, and their tensors.

A value has the name of its buffer in a step (compiler/place/buffers.py). It is either replicated
(the residual stream, a norm's output) or split by columns over the chips of a group. If another
chip needs a split value, it is rounded to fp16 and exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from chip.ops.opcodes import Activation, Function
from compiler.model.config import Experts

RESIDUAL, ROPE = "residual", "rope"


class Kind(StrEnum):
    """The kinds of graph operations."""

    NORM = "norm"
    LAYER_NORM = "layer_norm"  # its input becomes its norm; the output is that quantised
    LINEAR = "linear"
    GATHER = "gather"
    ROPE = "rope"
    ATTEND = "attend"
    GATE = "gate"
    APPLY = "apply"
    ADD = "add"
    ROUTE = "route"  # the output is the numbers of the chosen experts; their weights lie beside
    EXPERTS_EACH = "experts_each"  # a LINEAR of each chosen expert: a row for each
    EXPERTS_SUM = "experts_sum"  # the same of a row for each, weighted and summed


class Split(StrEnum):
    """The axis along which columns are dealt to the chips of a group."""

    NONE = "replicated"
    QKV = "query and key/value heads"
    HEADS = "query heads"
    KV_HEADS = "key/value heads"
    HIDDEN = "hidden"
    INTER = "intermediate"
    VOCAB = "vocabulary"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightTensor:
    """A tensor of an operation, by its Hugging Face name: `rows` of it are output columns."""

    name: str
    rows: int
    split: Split
    offset: float = 0.0  # of a norm: what is added to its values


def tensor_name(layer: int, name: str) -> str:
    """Return the Hugging Face name of a layer's tensor."""
    return f"model.layers.{layer}.{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOp:
    """One operation: `name` is its provenance; `inputs` and `output` name buffers of a step."""

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    output: str
    features: int  # columns of the output
    split: Split
    exchanged: bool = False  # the output is: it is fp16, and every chip gets all columns
    tensors: tuple[WeightTensor, ...] = ()
    biases: tuple[WeightTensor, ...] = ()  # of a product's tensors, or of a LAYER_NORM
    in_features: int = 0  # K of a product
    activation: Activation | None = None  # of a GATE
    function: Function | None = None  # of an APPLY
    vectors: tuple[tuple[str, WeightTensor], ...] = ()  # others that it takes, by operand
    window: int | None = None  # of ROPE and ATTEND: the last tokens that a row sees, if not all
    cap: float | None = None  # of an ATTEND's scores, or of a LINEAR's result
    experts: Experts | None = None  # of a ROUTE, or of a product whose tensors are theirs in turn
    after: bool = False  # of a ROUTE: the softmax is over the chosen experts alone
    each: int = 1  # rows of the output for each row of the step

    @property
    def dtype(self) -> str:
        """Type of the output's elements."""
        return "f16" if self.exchanged else "f32"

    @property
    def is_product(self) -> bool:
        """Whether the tensors are matrices."""
        return self.kind in (Kind.LINEAR, Kind.EXPERTS_EACH, Kind.EXPERTS_SUM)

    @property
    def matrices(self) -> int:
        """How many matrices a product has: one, or one of each expert."""
        return 1 if self.experts is None else self.experts.count

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the tensors, biases apart."""
        return tuple(tensor.name for tensor in self.tensors)

    def in_layer(self, index: int) -> GraphOp:
        """Return the operation of one layer, with that layer's names."""
        tensors, biases = (
            tuple(replace(tensor, name=tensor_name(index, tensor.name)) for tensor in some)
            for some in (self.tensors, self.biases)
        )
        vectors = tuple(
            (operand, replace(tensor, name=tensor_name(index, tensor.name)))
            for operand, tensor in self.vectors
        )
        return replace(
            self, name=f"layers.{index}.{self.name}", tensors=tensors, biases=biases,
            vectors=vectors,
        )  # fmt: skip

    def __str__(self) -> str:
        shape = f"[rows, {self.features}] {self.dtype}"
        inputs = ", ".join(self.inputs)
        return f"{self.name:<36} {self.kind:<7}({inputs}) -> {self.output} {shape}, {self.split}"


def gather(
    name: str, source: str, output: str, features: int, split: Split, each: int = 1
) -> GraphOp:  # fmt: skip
    """Join an exchanged value, dealt along `split`, for the product of the same name."""
    return GraphOp(
        name=name, kind=Kind.GATHER, inputs=(source,), output=output, features=features,
        split=split, each=each,
    )  # fmt: skip


def add(name: str, source: str, hidden: int, post: WeightTensor | None = None) -> GraphOp:
    """Add an exchanged value, or with `post` its norm, to the residual."""
    return GraphOp(
        name=name, kind=Kind.ADD, inputs=(RESIDUAL, source), output=RESIDUAL, features=hidden,
        split=Split.NONE, vectors=() if post is None else (("post", post),),
    )  # fmt: skip
