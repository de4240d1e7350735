"""List the operations and transfers of one step in dependency order, without cycles yet.

The order is by place in the graph, then by chip. When a transfer is planned, everything that its
receiver does before it is already in the list. So the scheduler sees every hazard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chip.ops.attention import Attend, Rope
from chip.ops.cost import C2C_TURN, TURNS, CostModel
from chip.ops.experts import ExpertsEach, ExpertsSum, Route, columns_apart, programs
from chip.ops.kv import ring_of
from chip.ops.product import (
    Activations,
    AddTo,
    Capped,
    Gated,
    GatherFirst,
    LinkRoom,
    Matmul,
    NormFirst,
    Plain,
)
from chip.ops.program import Computation
from chip.ops.rows import row_bytes, segment_offsets
from chip.ops.vector import Add, Apply, Gate, Gather, LayerNorm, Norm, TopK
from chip.spec import VECTOR_BYTES
from chip.sram import work_turn
from compiler.ir import Memory, StepKind
from compiler.model.operation import RESIDUAL, GraphOp, Kind, Split
from compiler.place.buffers import HANDED, PARTIAL, MemoryOptions
from compiler.place.network import Network
from compiler.place.partition import Group, Partition, weight_of
from compiler.schedule.movement import (
    Movement,
    Transfer,
    hidden_vectors,
    host_memory,
    pieces,
    result_bytes,
    vectors_of,
)

GAPS = TURNS * C2C_TURN  # cycles that a vector may wait for a gap in a product's loads


def slower_paces(slot_cycles: int) -> range:
    """Return slower paces of links with this slot at which products leave fewer gaps for them."""
    return range(C2C_TURN * (slot_cycles // C2C_TURN + 1), GAPS + 1, C2C_TURN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """An operation on one chip, not yet placed in time."""

    chip: int
    name: str
    op: Computation


class StepPlanner:
    """Walks the groups of a partition and lists what each chip does in one step."""

    def __init__(
        self, partition: Partition, network: Network, memories: list[Memory], kind: StepKind,
        memory: MemoryOptions, costs: CostModel,
    ) -> None:  # fmt: skip
        self.costs = costs  # by which the shorter of two programs is found
        self.partition, self.network, self.kind = partition, network, kind
        self.dtype, self.context, self.top_k = memory.dtype, memory.context, memory.top_k
        self.sequences, self.weight_group = memory.sequences, memory.group
        # vector work goes into the product beside it
        self.fuses = kind.rows == 1 and memory.dtype == "int8"
        self.config = partition.config
        self.eps = self.config.rms_norm_eps
        self.host = host_memory(partition, kind, memory.top_k)
        self.arrives: int | None = None  # of the next norm: a residual that comes off a link
        self.before: dict[tuple[int, str], NormFirst | GatherFirst] = {}  # prologues, by buffer
        self.buffers = [memory.buffers[kind.rows] for memory in memories]
        self.items: list[Planned | Transfer] = []
        self.moves = Movement(partition, network, kind, self.host, self.buffers, self.items)
        self.constants = [memory.addresses() for memory in memories]
        # bytes of each tensor, by its address
        self.spans = [{one.address: one.size for one in memory.tensors} for memory in memories]
        self._slots = {
            host: max(
                (link.slot_cycles for link in network.links if link.is_host == host), default=0
            )
            for host in (False, True)
        }  # cycles that a vector takes on links between chips, and on the host's

    def plan(self) -> list[Planned | Transfer]:
        """Return the step's operations and transfers in order."""
        groups = [g for g in self.partition.groups if len(g.layers) or self.kind.decode]
        self.moves.enter(groups[0])
        befores: list[Group | None] = [None, *groups[:-1]]
        for before, group, after in zip(befores, groups, [*groups[1:], None], strict=True):
            if before is None or len(before.chips) == 1:  # whole residuals come, link by link
                self.arrives = self._slots[before is None]
            for index in group.layers:
                last = index == group.layers[-1]
                self._layer(group, self.partition.graph.layers[index], after if last else None)
        if self.kind.decode:
            self._head(groups[-1])
        elif self.kind.encode:
            self._hidden(groups[-1])
        else:
            self._done(groups[-1])
        return self.items

    # -- operations

    def _op(self, chip: int, name: str, op: Computation) -> None:
        self.items.append(Planned(chip=chip, name=name, op=op))

    def _scale(self, chip: int, buffer: str) -> int | None:
        """Return the address of the scales of a buffer's quantised rows."""
        return self.buffers[chip][f"{buffer}.scale"] if self.dtype == "int8" else None

    def _operations(
        self, group: Group, ops: Sequence[GraphOp], leaving: GraphOp | None
    ) -> Iterator[GraphOp]:
        """List operations on every chip of a group, in order; yield each when it is listed.

        `leaving`: the product whose result leaves over links even if it is not exchanged.
        """
        done: GraphOp | None = None  # by the product in front
        for op, after in zip(ops, [*ops[1:], None], strict=True):
            joined = after if after is not None and self._joins(group, op, after) else None
            if op is not done:
                self._operation(group, op, joined, leaves=op is leaving)
            done = joined if op.kind is Kind.LINEAR else None
            yield op

    def _operation(
        self, group: Group, op: GraphOp, joined: GraphOp | None, *, leaves: bool
    ) -> None:
        """List an operation on every chip of a group; if `joined`, it is one with the next."""
        match op.kind:
            case Kind.NORM:
                self._norm(group, op, joined=joined is not None)
            case Kind.LAYER_NORM:
                self._layer_norm(group, op)
            case Kind.GATHER:
                self._gather(group, op, joined=joined is not None)
            case Kind.LINEAR:
                self._linear(group, op, joined or op, leaves)
            case Kind.ROPE | Kind.ATTEND:
                self._attention(group, op)
            case Kind.GATE:
                self._gate(group, op)
            case Kind.APPLY:
                self._apply(group, op)
            case Kind.ADD:
                self._add(group.chips, op, group, op.inputs[1])
            case Kind.ROUTE:
                self._route(group, op)
            case Kind.EXPERTS_EACH | Kind.EXPERTS_SUM:
                self._experts(group, op)

    def _norm(self, group: Group, op: GraphOp, *, joined: bool) -> None:
        """Norm and quantise rows: in an operation of its own, or in the product that takes them."""
        for chip in group.chips:
            src, gamma = self.buffers[chip][op.inputs[0]], self.constants[chip][op.name]
            q, scale, eps = self.buffers[chip][op.output], self._scale(chip, op.output), self.eps
            if joined:
                self.before[chip, op.output] = NormFirst(
                    eps=eps, arrives=self.arrives, src=src, gamma=gamma, q=q, qs=scale
                )
                continue
            norm = Norm(
                rows=self.kind.rows, hidden=op.features, eps=eps, dtype=self.dtype, x=src,
                gamma=gamma, q=q, s=scale,
            )  # fmt: skip
            self._op(chip, op.name, norm)
        self.arrives = None

    def _layer_norm(self, group: Group, op: GraphOp) -> None:
        """Norm the residual, and make quantised rows of it, unless it is the result itself."""
        quantises = op.output != op.inputs[0]
        for chip in group.chips:
            norm = LayerNorm(
                rows=self.kind.rows, hidden=op.features, eps=self.eps, dtype=self.dtype,
                x=self.buffers[chip][op.inputs[0]], gamma=self.constants[chip][op.name],
                beta=self.constants[chip][f"{op.name}.bias"],
                q=self.buffers[chip][op.output] if quantises else None,
                s=self._scale(chip, op.output) if quantises else None,
            )  # fmt: skip
            self._op(chip, op.name, norm)

    def _gather(self, group: Group, op: GraphOp, *, joined: bool) -> None:
        """Quantise the rows of a gather buffer: in an operation of its own, or in the product."""
        shares = group.shares(op.split, self.config.head_dim)
        for chip in group.chips:
            src = self.buffers[chip][op.inputs[0]]
            q, scale = self.buffers[chip][op.output], self._scale(chip, op.output)
            if joined:
                self.before[chip, op.output] = GatherFirst(shares=shares, src=src, q=q, qs=scale)
                continue
            gather = Gather(
                rows=self.kind.rows * op.each, dtype=self.dtype, shares=shares,
                each=_each(op), src=src, q=q, s=scale,
            )  # fmt: skip
            self._op(chip, op.name, gather)

    def _joins(self, group: Group, op: GraphOp, after: GraphOp) -> bool:
        """Say whether a product of one row does its neighbour's work; `op` or `after` is it.

        It norms or gathers its input. It gates or adds its result, unless that is exchanged.
        """
        if not self.fuses or op.output not in after.inputs:
            return False
        if after.kind is Kind.LINEAR:
            return op.kind in (Kind.NORM, Kind.GATHER)
        kept = not op.exchanged or len(group.chips) == 1
        plain = after.kind is Kind.ADD and not after.vectors  # of what is not normed before
        return op.kind is Kind.LINEAR and (after.kind is Kind.GATE or plain) and kept

    def _on_links(self, group: Group, op: GraphOp, n: int, leaves: bool) -> LinkRoom:
        """Return a product's link parameters: the pace of its result, and room for vectors.

        The links of a single chip are idle until its result leaves; those of one of several may not
        be.
        """
        slot = self._slots[op.split is Split.VOCAB] if leaves else GAPS
        alone = len(group.chips) == 1
        gaps = max(C2C_TURN, min(slot // C2C_TURN * C2C_TURN, GAPS))
        last = vectors_of(row_bytes(n, 4)) * slot + 4 * GAPS
        return LinkRoom(
            pace=slot if leaves else None,
            gaps=gaps if leaves or not alone else None,
            gaps_last=last if leaves and alone else None,
        )

    def _linear(self, group: Group, op: GraphOp, last: GraphOp, leaves: bool) -> None:
        """List every rank's columns of a product; fp16 results go to the rank's own segment."""
        (source,) = op.inputs
        half = op.exchanged or last.exchanged
        offsets = self._offsets(group, op.split) if half else [0] * len(group.chips)
        for rank, chip in enumerate(group.chips):
            weight = weight_of(self.config, group, rank, op)
            if not weight.n:
                continue
            rows = Activations(x=self.buffers[chip][source], s=self._scale(chip, source))
            room = LinkRoom(gaps=GAPS if self.kind.rows > 1 else None)
            at = self.buffers[chip][last.output] + offsets[rank]
            if self.fuses:
                out = leaves or (half and len(group.chips) > 1)
                room = self._on_links(group, op, weight.n, out)
            scales = self.constants[chip].get(f"{op.name}.scale")
            matmul = Matmul(
                rows=self.kind.rows, k=op.in_features, n=weight.n, dtype=self.dtype,
                group=self.weight_group, out="f16" if half else "f32",
                source=self.before.get((chip, source), rows),
                result=_result(last, at), links=room,
                w=self.constants[chip][op.name], sw=scales if self.dtype == "int8" else None,
                b=self.constants[chip][f"{op.name}.bias"] if op.biases else None,
                first_column=group.vocab[rank][0] if op.split is Split.VOCAB else None,
            )  # fmt: skip
            self._op(chip, op.name, matmul)

    def _route(self, group: Group, op: GraphOp) -> None:
        (scores,), experts, rows = op.inputs, op.experts, self.kind.rows
        assert experts is not None
        for chip in group.chips:
            buffers = self.buffers[chip]
            route = Route(
                rows=rows, experts=experts.count, chosen=experts.chosen, after=op.after,
                x=buffers[scores], e=buffers[op.output], g=buffers[f"{op.output}.weight"],
            )  # fmt: skip
            self._op(chip, op.name, route)

    def _experts(self, group: Group, op: GraphOp) -> None:
        """List every rank's columns of the chosen experts, by the shorter of both programs."""
        source, chosen = op.inputs
        experts, summed = op.experts, op.kind is Kind.EXPERTS_SUM
        assert experts is not None
        offsets = self._offsets(group, op.split) if summed else [0] * len(group.chips)
        for rank, chip in enumerate(group.chips):
            buffers, constants = self.buffers[chip], self.constants[chip]
            weight = weight_of(self.config, group, rank, op)
            if not weight.n:
                continue
            apart = columns_apart(weight.n, work_turn(self.costs.spec))
            shape: dict[str, Any] = {
                "rows": self.kind.rows, "experts": experts.count, "chosen": experts.chosen,
                "k": op.in_features, "n": weight.n, "dtype": self.dtype,
                "group": self.weight_group, "apart": apart,
                "x": buffers[source], "s": self._scale(chip, source), "e": buffers[chosen],
                "w": constants[op.name], "sw": constants.get(f"{op.name}.scale"),
                "b": constants.get(f"{op.name}.bias"), "y": buffers[op.output] + offsets[rank],
            }  # fmt: skip
            made = (
                ExpertsSum(**shape, g=buffers[f"{chosen}.weight"], t=buffers[PARTIAL]) if summed
                else ExpertsEach(**shape)
            )  # fmt: skip
            self._op(chip, op.name, min(programs(made), key=self.costs.cycles))

    def _offsets(self, group: Group, split: Split, each: int = 1) -> list[int]:
        """Return where each rank's segment of a gather buffer begins."""
        return segment_offsets(group.shares(split, self.config.head_dim), self.kind.rows * each)

    def _cache(self, chip: int, op: GraphOp) -> tuple[int, int | None]:
        """Return the addresses of the KV cache of an operation's layer, and of its scales."""
        constants, layer = self.constants[chip], op.name.rsplit(".", 2)[0]
        scales = constants[f"{layer}.kv.scale"] if self.dtype == "int8" else None
        return constants[f"{layer}.kv"], scales

    def _in_slots(self, chip: int, made: Rope | Attend) -> Rope | Attend:
        """Return ROPE or ATTEND with its layer's caches of all slots."""
        between = self.sequences - 1
        if not between:
            return made
        layout, spans = made.layout, self.spans[chip]
        kvs = None if made.kvs is None else (spans[made.kvs] - layout.scales_bytes) // between
        return replace(
            made, slots=self.sequences, kvs_step=kvs,
            kv_step=(spans[made.kv] - layout.total_bytes) // between,
        )  # fmt: skip

    def _attention(self, group: Group, op: GraphOp) -> None:
        """List ROPE or ATTEND on the ranks that have heads.

        A decode step's rows attend one by one, each to the cache of its own slot.
        """
        alone = self.kind.decode and self.kind.rows > 1
        for rank, chip in enumerate(group.chips):
            if group.heads[rank][0] == group.heads[rank][1]:
                continue
            if op.kind is Kind.ROPE:
                self._op(chip, op.name, self._in_slots(chip, self._rope(group, rank, op)))
                continue
            for row in range(self.kind.rows) if alone else [None]:
                made = self._attend(group, rank, op, row)
                self._op(chip, op.name, self._in_slots(chip, made))

    def _rope(self, group: Group, rank: int, op: GraphOp) -> Rope:
        (first, last), (kv_first, kv_last) = group.heads[rank], group.kv_heads[rank]
        buffers, (kv, kvs) = self.buffers[group.chips[rank]], self._cache(group.chips[rank], op)
        constants, int8 = self.constants[group.chips[rank]], self.dtype == "int8"
        qkv, *tables = op.inputs
        return Rope(
            rows=self.kind.rows, dtype=self.dtype, heads=last - first, kv_heads=kv_last - kv_first,
            head_dim=self.config.head_dim, context=self.context,
            ring=ring_of(op.window, self.context), qkv=buffers[qkv],
            rope=buffers[tables[0]] if tables else None, q=buffers[op.output],
            sq=self._scale(group.chips[rank], op.output), kv=kv, kvs=kvs,
            scale=self.config.attention_scale if int8 else None,
            eps=self.eps if op.vectors else None,
            **{operand: constants[f"{op.name}.{operand}"] for operand, _ in op.vectors},
        )  # fmt: skip

    def _attend(self, group: Group, rank: int, op: GraphOp, row: int | None) -> Attend:
        (first, last), (kv_first, kv_last) = group.heads[rank], group.kv_heads[rank]
        buffers, (kv, kvs) = self.buffers[group.chips[rank]], self._cache(group.chips[rank], op)
        (query,), constants = op.inputs, self.constants[group.chips[rank]]
        ring = ring_of(op.window, self.context)
        attend = Attend(
            rows=self.kind.rows if row is None else 1, row=row, dtype=self.dtype,
            heads=last - first, kv_heads=kv_last - kv_first, head_dim=self.config.head_dim,
            context=self.context,
            bucket=min(self.kind.bucket, ring or self.context),
            kv_of=self.partition.kv_of(group, rank),
            window=op.window, ring=ring, cap=op.cap,
            scale=None if self.dtype == "int8" else self.config.attention_scale,
            horizon=0 if self.kind.encode else None,  # the last token's row: all see each other
            q=buffers[query],
            sq=self._scale(group.chips[rank], query), kv=kv, kvs=kvs,
            y=buffers[op.output] + self._offsets(group, op.split)[rank],
            scratch=buffers["scores"], stats=buffers["stats"] if self.dtype == "int8" else None,
            **{operand: constants[f"{op.name}.{operand}"] for operand, _ in op.vectors},
        )  # fmt: skip
        return attend if row is None else _one_row(attend, row)

    def _add(self, chips: Sequence[int], op: GraphOp, group: Group, source: str) -> None:
        """Add the segments of a group's ranks to the residual, on the group's chips or others."""
        shares = group.shares(Split.HIDDEN, self.config.head_dim)
        for chip in chips:
            x, src = self.buffers[chip][op.output], self.buffers[chip][source]
            post = self.constants[chip][f"{op.name}.post"] if op.vectors else None
            add = Add(
                rows=self.kind.rows, shares=shares, x=x, src=src, post=post,
                eps=None if post is None else self.eps,
            )  # fmt: skip
            self._op(chip, op.name, add)

    def _gate(self, group: Group, op: GraphOp) -> None:
        shares = group.shares(op.split, self.config.head_dim)
        offsets = self._offsets(group, op.split, op.each)
        (source,) = op.inputs
        assert op.activation is not None
        for rank, chip in enumerate(group.chips):
            buffers = self.buffers[chip]
            if shares[rank]:
                gate = Gate(
                    activation=op.activation, rows=self.kind.rows * op.each,
                    k=self.config.hidden_size, n=shares[rank], dtype=self.dtype, each=_each(op),
                    x=buffers[source],
                    y=buffers[op.output] + offsets[rank],
                )  # fmt: skip
                self._op(chip, op.name, gate)

    def _apply(self, group: Group, op: GraphOp) -> None:
        shares = group.shares(op.split, self.config.head_dim)
        offsets = self._offsets(group, op.split)
        (source,) = op.inputs
        assert op.function is not None
        for rank, chip in enumerate(group.chips):
            buffers = self.buffers[chip]
            if shares[rank]:
                apply = Apply(
                    function=op.function, rows=self.kind.rows, n=shares[rank], x=buffers[source],
                    y=buffers[op.output] + offsets[rank],
                )  # fmt: skip
                self._op(chip, op.name, apply)

    # -- layers

    def _layer(self, group: Group, ops: tuple[GraphOp, ...], after: Group | None) -> None:
        """List one layer; `after` is the group that takes over behind it.

        A group that goes ahead hands the residual over before the layer's last sum, and the next
        group does that sum. Any other group hands it over after the layer.
        """
        ahead = after if self._goes_ahead(group) else None
        *_, before_last, last = (op for op in ops if op.kind is Kind.ADD)
        branch = next(op for op in ops if op.output in last.inputs and op.exchanged)
        own = ops if ahead is None else ops[: ops.index(last)]
        for op in self._operations(group, own, branch if after is not None else None):
            if op.exchanged:
                self.moves.exchange(group, op, ahead if op is branch else None)
            if op is before_last and ahead is not None:
                self.moves.hand_over(group, ahead, op.name)
        if ahead is not None:
            self._add(ahead.chips, last, group, HANDED)
        elif after is not None:
            self.moves.hand_over(group, after, last.name)

    def _goes_ahead(self, group: Group) -> bool:
        """Say whether the residual leaves a group before the sum that ends its last layer.

        In a decode step it leaves while the MLP runs. Then only the MLP's result is left to send,
        and the next group adds it. A single chip does not go ahead: it adds without an exchange.
        Neither do steps of several rows, which follow each other: the next group would wait with
        half of its input.
        """
        return self.kind.decode and self.kind.rows == 1 and len(group.chips) > 1

    def _head(self, group: Group) -> None:
        ops = self.partition.graph.head
        for _ in self._operations(group, ops, None if self.top_k else ops[-1]):
            pass
        for row in range(self.kind.rows) if self.kind.rows > 1 else [None]:
            for rank, chip in enumerate(group.chips):
                if group.vocab[rank][0] < group.vocab[rank][1]:
                    self._row_result(group, rank, chip, ops[-1].output, row)

    def _row_result(
        self, group: Group, rank: int, chip: int, logits: str, row: int | None
    ) -> None:  # fmt: skip
        """Send a row's logits, or the largest of them, from one head chip to the host."""
        (first, last), buffers, nth = group.vocab[rank], self.buffers[chip], row or 0
        size = result_bytes(self.partition, rank, self.top_k)
        at = buffers[logits] + nth * row_bytes(last - first, 4)
        if self.top_k:
            x, at = at, buffers["top_k"] + nth * size
            top = TopK(
                k=min(self.top_k, last - first), n=last - first, x=x, y=at, first_column=first,
                row=row,
            )  # fmt: skip
            self._op(chip, "sample.top_k", top)
        dst = (self.partition.layout.chips, self.host.results[chip] + nth * size)
        self.moves.send("host.result", (chip, at), [dst], vectors_of(size), row)

    def _hidden(self, group: Group) -> None:
        """An encode step ends with hidden states: a part of the rows from each chip."""
        for _ in self._operations(group, self.partition.graph.head, None):
            pass
        host, total = self.partition.layout.chips, hidden_vectors(self.partition, self.kind)
        for chip, (first, stop) in zip(group.chips, pieces(total, len(group.chips)), strict=False):
            src = (chip, self.buffers[chip][RESIDUAL] + first * VECTOR_BYTES)
            self.moves.send("host.result", src, [(host, self.host.results[chip])], stop - first)

    def _done(self, group: Group) -> None:
        """End a prefill step with one vector to the host, which tells it that the step is over."""
        host, chip = self.partition.layout.chips, group.chips[0]
        src = (chip, self.buffers[chip][RESIDUAL])
        self.moves.send("host.done", src, [(host, self.host.results[chip])], 1)


def _one_row(attend: Attend, row: int) -> Attend:
    """Return an ATTEND, whose operands are at their first rows, with them at another row."""
    layout, heads = attend.layout, attend.heads
    scales = row * layout.query_scale_bytes(heads)
    return replace(
        attend, q=attend.q + row * layout.query_bytes(heads),
        sq=None if attend.sq is None else attend.sq + scales,
        y=attend.y + row * row_bytes(heads * attend.head_dim, 2),
    )  # fmt: skip


def _each(op: GraphOp) -> int | None:
    """Return how many rows an operation has for each of the step, if it is not one."""
    return op.each if op.each > 1 else None


def _result(op: GraphOp, at: int) -> Plain | AddTo | Gated | Capped:
    """Return the epilogue of a product for the operation that it is, or does as its last part."""
    match op.kind:
        case Kind.ADD:
            return AddTo(r=at)
        case Kind.GATE:
            assert op.activation is not None
            return Gated(activation=op.activation, y=at)
        case _:
            return Plain(y=at) if op.cap is None else Capped(cap=op.cap, y=at)
