"""Deal a model over a layout: layers to stages, output columns to the chips of a group.

Every matrix is split by output columns only (law 2), in multiples of 16. Attention is split by KV
head; heads are replicated if a group has more chips than heads. Shares may be uneven or empty.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from chip.ops.rows import gated_widths
from compiler.errors import LayoutError
from compiler.model.config import ModelConfig
from compiler.model.graph import Graph
from compiler.model.operation import GraphOp, Split, WeightTensor
from compiler.place.layout import Layout

COLUMN_UNIT = 16  # columns are dealt in whole superlanes

Span = tuple[int, int]
"""Half-open range of columns or heads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows `start:stop` of one Hugging Face matrix, or elements of a vector, plus `offset`."""

    tensor: str
    start: int
    stop: int
    offset: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One matrix of one chip: its output columns are the pieces in order, `k` its input width."""

    name: str
    pieces: tuple[Piece, ...]
    k: int

    @property
    def n(self) -> int:
        """Output columns."""
        return sum(piece.stop - piece.start for piece in self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Chips that work on the same layers, and each rank's columns."""

    index: int
    chips: tuple[int, ...]
    layers: range
    has_head: bool
    heads: tuple[Span, ...]  # query heads
    kv_heads: tuple[Span, ...]
    hidden: tuple[Span, ...]
    inter: tuple[Span, ...]
    vocab: tuple[Span, ...]

    def spans(self, split: Split) -> tuple[Span, ...]:
        """Return the column spans of a split, by rank. Refuses heads, which are not columns."""
        table = {Split.HIDDEN: self.hidden, Split.INTER: self.inter, Split.VOCAB: self.vocab}
        return table[split]

    def columns(self, rank: int, split: Split, head_dim: int) -> Span:
        """Return a rank's columns of a split value, or rows of a split tensor; also for heads."""
        if split is Split.HEADS or split is Split.KV_HEADS:
            start, stop = (self.heads if split is Split.HEADS else self.kv_heads)[rank]
            return start * head_dim, stop * head_dim
        return self.spans(split)[rank]

    def shares(self, split: Split, head_dim: int) -> tuple[int, ...]:
        """Return how many columns of a split value each rank holds."""
        if split is Split.HEADS:
            return tuple((stop - start) * head_dim for start, stop in self.heads)
        return tuple(stop - start for start, stop in self.spans(split))


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """The whole model over the whole layout. The last group holds the head."""

    graph: Graph
    layout: Layout
    groups: tuple[Group, ...]

    @property
    def config(self) -> ModelConfig:
        return self.graph.config

    @property
    def last_layers(self) -> Group:
        """The last group that holds layers."""
        return self.groups[-2] if self.layout.head else self.groups[-1]

    def groups_of(self, chip: int) -> list[tuple[Group, int]]:
        """Return the groups a chip belongs to, with its rank in each."""
        return [(g, g.chips.index(chip)) for g in self.groups if chip in g.chips]

    def kv_of(self, group: Group, rank: int) -> tuple[int, ...]:
        """Return for each query head of a rank the KV head, of the rank's own, that it reads."""
        per_kv, kv_first = (
            self.config.num_heads // self.config.num_kv_heads,
            group.kv_heads[rank][0],
        )
        return tuple(head // per_kv - kv_first for head in range(*group.heads[rank]))

    def ops(self, group: Group) -> list[GraphOp]:
        """Return the graph operations of a group in order."""
        layers = [op for index in group.layers for op in self.graph.layers[index]]
        return layers + (list(self.graph.head) if group.has_head else [])

    def vectors_of(self, group: Group, rank: int) -> dict[str, Piece]:
        """Return the vectors that a rank's operations take beside: constant's name to its values.

        A group may do the sum that ends the group before (compiler/schedule/steps.py).
        """
        ops = self.ops(group)
        if group.index:
            ops = [self.graph.layers[self.groups[group.index - 1].layers[-1]][-1], *ops]
        found = {}
        for op in ops:
            for operand, tensor in op.vectors:
                stop, start = tensor.rows, 0
                if tensor.split is Split.HEADS:
                    start, stop = group.heads[rank]
                if stop > start:
                    found[f"{op.name}.{operand}"] = Piece(
                        tensor=tensor.name, start=start, stop=stop, offset=tensor.offset
                    )
        return found


@lru_cache(maxsize=256)  # groups of a layout are alike, and so are the layouts of a search
def deal(total: int, ranks: int, unit: int) -> tuple[Span, ...]:
    """Deal `total` columns over `ranks` in units, as evenly as units allow; shares may be empty."""
    units = -(-total // unit)
    edges = [min(units * rank // ranks * unit, total) for rank in range(ranks + 1)]
    return tuple((edges[rank], edges[rank + 1]) for rank in range(ranks))


@lru_cache(maxsize=64)
def deal_heads(heads: int, kv_heads: int, ranks: int) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Deal query heads and their KV heads. KV heads are replicated if there are more ranks."""
    per_kv = heads // kv_heads
    if ranks <= kv_heads:
        kv = deal(kv_heads, ranks, 1)
        return tuple((start * per_kv, stop * per_kv) for start, stop in kv), kv
    queries: list[Span] = []
    kv_spans: list[Span] = []
    owner = [rank * kv_heads // ranks for rank in range(ranks)]
    for rank, head in enumerate(owner):
        first = owner.index(head)
        shares = deal(per_kv, owner.count(head), 1)
        start, stop = shares[rank - first]
        queries.append((head * per_kv + start, head * per_kv + stop))
        kv_spans.append((head, head + 1) if stop > start else (head, head))
    return tuple(queries), tuple(kv_spans)


def partition(graph: Graph, layout: Layout) -> Partition:
    """Deal the graph over the layout.

    Raises LayoutError for more stages than layers, and for an encoder's head group.
    """
    config = graph.config
    if layout.stages > config.num_layers:
        raise LayoutError(
            f"layout {layout}: {layout.stages} stages, but {config.name} has "
            f"{config.num_layers} layers; at least one layer a stage"
        )
    if config.encoder is not None and layout.head:
        raise LayoutError(
            f"layout {layout}: wanted no head group, as {config.name} is an encoder, got "
            f"{layout.head} chips"
        )
    spread = deal(config.num_layers, layout.stages, 1)
    groups = [
        _group(config, stage, layout.stage_chips(stage), range(*spread[stage]), head=False)
        for stage in range(layout.stages)
    ]
    if layout.head:
        groups.append(_group(config, layout.stages, layout.head_chips, range(0), head=True))
    else:
        last = groups[-1]
        groups[-1] = _group(config, last.index, last.chips, last.layers, head=True)
    return Partition(graph=graph, layout=layout, groups=tuple(groups))


def _group(
    config: ModelConfig, index: int, chips: tuple[int, ...], layers: range, *, head: bool
) -> Group:
    ranks = len(chips)
    heads, kv_heads = deal_heads(config.num_heads, config.num_kv_heads, ranks)
    return Group(
        index=index,
        chips=chips,
        layers=layers,
        has_head=head,
        heads=heads,
        kv_heads=kv_heads,
        hidden=deal(config.hidden_size, ranks, COLUMN_UNIT),
        inter=deal(config.intermediate_size, ranks, COLUMN_UNIT),
        vocab=deal(config.vocab_size, ranks, COLUMN_UNIT),
    )


def weights_of(
    config: ModelConfig, group: Group, rank: int, op: GraphOp
) -> tuple[Weight, ...]:  # fmt: skip
    """Return the columns of a product that one rank holds: one matrix, or one of each expert."""
    return tuple(weight_of(config, group, rank, op, number) for number in range(op.matrices))


def weight_of(
    config: ModelConfig, group: Group, rank: int, op: GraphOp, expert: int = 0
) -> Weight:  # fmt: skip
    """Return the columns that one rank holds of a matrix; they may be empty.

    Those of all experts are as many.
    """
    if not op.is_product:
        raise ValueError(f"{op.name}: {op.kind} has no weight matrix")
    each = len(op.tensors) // op.matrices
    tensors = op.tensors[expert * each : (expert + 1) * each]
    spans = [span_of(config, group, rank, tensor) for tensor in tensors]
    if len(tensors) == 2:  # gate and up alternate, so that they meet in the VXM
        names = (tensors[0].name, tensors[1].name)
        return Weight(name=op.name, pieces=_gated(names, spans[0]), k=op.in_features)
    pieces = tuple(
        Piece(tensor=tensor.name, start=start, stop=stop)
        for tensor, (start, stop) in zip(tensors, spans, strict=True)
        if stop > start
    )
    return Weight(name=op.name, pieces=pieces, k=op.in_features)


def span_of(config: ModelConfig, group: Group, rank: int, tensor: WeightTensor) -> Span:
    """Return the rows of a tensor that one rank holds."""
    if tensor.split is Split.NONE:
        return 0, tensor.rows
    return group.columns(rank, tensor.split, config.head_dim)


def biases_of(
    config: ModelConfig, group: Group, rank: int, op: GraphOp
) -> tuple[tuple[Piece, ...], ...]:  # fmt: skip
    """Return the biases of the columns that `weights_of` gives, in their order."""
    bias = {tensor.name: bias.name for tensor, bias in zip(op.tensors, op.biases, strict=True)}
    return tuple(
        tuple(replace(piece, tensor=bias[piece.tensor]) for piece in weight.pieces)
        for weight in weights_of(config, group, rank, op)
    )


def _gated(tensors: tuple[str, ...], span: Span) -> tuple[Piece, ...]:
    """Return a rank's columns of the gate and up projections in turns."""
    pieces, at = [], span[0]
    for width in gated_widths(span[1] - span[0]):
        pieces += [Piece(tensor=tensor, start=at, stop=at + width) for tensor in tensors]
        at += width
    return tuple(pieces)
