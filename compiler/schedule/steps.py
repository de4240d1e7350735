"""One step as a list of operations and transfers in dependency order, without cycles yet.

The order is by place in the graph, then by chip: when a transfer is planned, everything that its
receiver does earlier in the program is already in the list, so the scheduler sees every hazard.
"""

from __future__ import annotations

from dataclasses import dataclass

from chip.ops.attention import Attend, Rope
from chip.ops.cost import C2C_TURN, TURNS
from chip.ops.product import (
    Activations,
    AddTo,
    Gated,
    GatherFirst,
    LinkRoom,
    Matmul,
    NormFirst,
    Plain,
)
from chip.ops.program import Computation
from chip.ops.rows import row_bytes, segment_offsets
from chip.ops.vector import Add, Gather, Norm, Silu, TopK
from compiler.ir import Memory, StepKind
from compiler.model.graph import GraphOp, Kind, Split
from compiler.place.allocate import HANDED
from compiler.place.network import Network
from compiler.place.partition import Group, Partition, weight_of
from compiler.schedule.movement import Movement, Transfer, host_memory, result_bytes, vectors_of

GAPS = TURNS * C2C_TURN  # cycles that a vector may wait for a gap in a product's loads


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
        dtype: str, context: int, top_k: int,
    ) -> None:  # fmt: skip
        self.partition, self.network, self.kind = partition, network, kind
        self.dtype, self.context, self.top_k = dtype, context, top_k
        self.fuses = kind.rows == 1 and dtype == "int8"  # vector work into the product beside it
        self.config = partition.config
        self.eps = self.config.rms_norm_eps
        self.host = host_memory(partition, kind, top_k)
        self.arrives: int | None = None  # of the next norm: a residual that comes off a link
        self.before: dict[tuple[int, str], NormFirst | GatherFirst] = {}  # prologues, by buffer
        self.buffers = [memory.buffers[kind.rows] for memory in memories]
        self.items: list[Planned | Transfer] = []
        self.moves = Movement(partition, network, kind, self.host, self.buffers, self.items)
        self.constants = [memory.addresses() for memory in memories]

    def plan(self) -> list[Planned | Transfer]:
        """Return the step's operations and transfers in order."""
        groups = [g for g in self.partition.groups if len(g.layers) or self.kind.decode]
        self.moves.enter(groups[0])
        befores: list[Group | None] = [None, *groups[:-1]]
        for before, group, after in zip(befores, groups, [*groups[1:], None], strict=True):
            if before is None or len(before.chips) == 1:  # whole residuals come, link by link
                self.arrives = self._slot(host=before is None)
            for index in group.layers:
                last = index == group.layers[-1]
                self._layer(group, self.partition.graph.layers[index], after if last else None)
        if self.kind.decode:
            self._head(groups[-1])
        else:
            self._done(groups[-1])
        return self.items

    # -- operations

    def _op(self, chip: int, name: str, op: Computation) -> None:
        self.items.append(Planned(chip=chip, name=name, op=op))

    def _scale(self, chip: int, buffer: str) -> int | None:
        """Return the address of the scales of a buffer's quantised rows."""
        return self.buffers[chip][f"{buffer}.scale"] if self.dtype == "int8" else None

    def _norm(self, group: Group, op: GraphOp, buffer: str) -> None:
        """Make quantised rows of the residual: in an operation of its own, or in the product's."""
        for chip in group.chips:
            src, gamma = self.buffers[chip]["residual"], self.constants[chip][op.name]
            q, scale, eps = self.buffers[chip][buffer], self._scale(chip, buffer), self.eps
            if self.fuses:
                self.before[chip, buffer] = NormFirst(
                    eps=eps, arrives=self.arrives, src=src, gamma=gamma, q=q, qs=scale
                )
                continue
            norm = Norm(
                rows=self.kind.rows, hidden=op.features, eps=eps, dtype=self.dtype, x=src,
                gamma=gamma, q=q, s=scale,
            )  # fmt: skip
            self._op(chip, op.name, norm)
        self.arrives = None

    def _gather(self, group: Group, name: str, source: str, buffer: str, split: Split) -> None:
        """Make quantised rows of a gather buffer, as `_norm` does."""
        shares = tuple(group.shares(split, self.config.head_dim))
        for chip in group.chips:
            src = self.buffers[chip][source]
            q, scale = self.buffers[chip][buffer], self._scale(chip, buffer)
            if self.fuses:
                self.before[chip, buffer] = GatherFirst(shares=shares, src=src, q=q, qs=scale)
                continue
            gather = Gather(
                rows=self.kind.rows, dtype=self.dtype, shares=shares, src=src, q=q, s=scale
            )
            self._op(chip, name, gather)

    def _epilogue(self, group: Group, op: GraphOp) -> type[AddTo] | type[Gated] | None:
        """Return what follows a product as a part of it: of one row that is not exchanged."""
        if not self.fuses:
            return None
        if op.split is Split.HIDDEN and len(group.chips) == 1:
            return AddTo
        return Gated if op.split is Split.INTER else None

    def _slot(self, *, host: bool) -> int:
        """Return the cycles that a vector takes on links between chips, or on the host's."""
        return max(link.slot_cycles for link in self.network.links if link.is_host == host)

    def _on_links(self, group: Group, op: GraphOp, n: int, leaves: bool) -> LinkRoom:
        """Return what a product must know of links: the pace of its result, and room for vectors.

        A chip alone has nothing on its links until its result leaves; one of several may.
        """
        slot = self._slot(host=op.split is Split.VOCAB) if leaves else GAPS
        alone = len(group.chips) == 1
        gaps = max(C2C_TURN, min(slot // C2C_TURN * C2C_TURN, GAPS))
        last = vectors_of(row_bytes(n, 4)) * slot + 4 * GAPS
        return LinkRoom(
            pace=slot if leaves else None,
            gaps=gaps if leaves or not alone else None,
            gaps_last=last if leaves and alone else None,
        )

    def _linear(
        self, group: Group, op: GraphOp, source: str, target: str, *, leaves: bool = False
    ) -> None:
        """Every rank's columns of a product; fp16 results go to the rank's own segment.

        `leaves`: links take the result even if it is not exchanged.
        """
        epilogue = self._epilogue(group, op)
        half = op.dtype == "f16" or epilogue is not None
        offsets = [0] * len(group.chips)
        if half:
            shares = group.shares(op.split, self.config.head_dim)
            offsets = segment_offsets(shares, self.kind.rows)
        if epilogue is not None:
            target = "residual" if epilogue is AddTo else "mlp.mid"
        for rank, chip in enumerate(group.chips):
            weight = weight_of(self.config, group, rank, op)
            if not weight.n:
                continue
            rows = Activations(x=self.buffers[chip][source], s=self._scale(chip, source))
            room, at = LinkRoom(), self.buffers[chip][target] + offsets[rank]
            if self.fuses:
                out = leaves or (half and len(group.chips) > 1)
                room = self._on_links(group, op, weight.n, out)
            result: Plain | AddTo | Gated = Plain(y=at)
            if epilogue is not None:
                result = AddTo(r=at) if epilogue is AddTo else Gated(y=at)
            scales = self.constants[chip].get(f"{op.name}.scale")
            matmul = Matmul(
                rows=self.kind.rows, k=op.in_features, n=weight.n, dtype=self.dtype,
                out="f16" if half else "f32", source=self.before.get((chip, source), rows),
                result=result, links=room, w=self.constants[chip][op.name],
                sw=scales if self.dtype == "int8" else None,
                first_column=group.vocab[rank][0] if op.split is Split.VOCAB else None,
            )  # fmt: skip
            self._op(chip, op.name, matmul)

    def _attention(self, group: Group, rope: GraphOp, attend: GraphOp) -> None:
        layer = rope.name.rsplit(".", 2)[0]
        shares = group.shares(Split.HEADS, self.config.head_dim)
        offsets = segment_offsets(shares, self.kind.rows)
        int8 = self.dtype == "int8"
        for rank, chip in enumerate(group.chips):
            (first, last), (kv_first, kv_last) = group.heads[rank], group.kv_heads[rank]
            if last == first:
                continue
            buffers, constants = self.buffers[chip], self.constants[chip]
            heads, kv_heads, dim = last - first, kv_last - kv_first, self.config.head_dim
            kv, kvs = constants[f"{layer}.kv"], constants[f"{layer}.kv.scale"] if int8 else None
            q, sq = buffers["query"], self._scale(chip, "query")
            turned = Rope(
                rows=self.kind.rows, dtype=self.dtype, heads=heads, kv_heads=kv_heads,
                head_dim=dim, context=self.context, qkv=buffers["qkv"], rope=buffers["rope"],
                q=q, sq=sq, kv=kv, kvs=kvs,
            )  # fmt: skip
            self._op(chip, rope.name, turned)
            attended = Attend(
                rows=self.kind.rows, dtype=self.dtype, heads=heads, kv_heads=kv_heads,
                head_dim=dim, context=self.context, bucket=self.kind.bucket,
                kv_of=tuple(self.partition.kv_of(group, rank)), q=q, sq=sq, kv=kv, kvs=kvs,
                y=buffers["attn.out"] + offsets[rank], scratch=buffers["scores"],
                stats=buffers["stats"] if int8 else None,
            )  # fmt: skip
            self._op(chip, attend.name, attended)

    def _add(self, group: Group, op: GraphOp, source: str, after: Group | None = None) -> None:
        """Add the group's segments to the residual, on its own chips or on those of the next."""
        if self.fuses and len(group.chips) == 1:
            return  # a part of the product
        shares = tuple(group.shares(Split.HIDDEN, self.config.head_dim))
        to, source = (group, source) if after is None else (after, HANDED)
        for chip in to.chips:
            x, src = self.buffers[chip]["residual"], self.buffers[chip][source]
            self._op(chip, op.name, Add(rows=self.kind.rows, shares=shares, x=x, src=src))

    def _silu(self, group: Group, op: GraphOp) -> None:
        if self.fuses:
            return  # a part of the product
        shares = group.shares(Split.INTER, self.config.head_dim)
        offsets = segment_offsets(shares, self.kind.rows)
        for rank, chip in enumerate(group.chips):
            buffers = self.buffers[chip]
            if shares[rank]:
                silu = Silu(
                    rows=self.kind.rows, k=self.config.hidden_size, n=shares[rank],
                    dtype=self.dtype, x=buffers["gate_up"], y=buffers["mlp.mid"] + offsets[rank],
                )  # fmt: skip
                self._op(chip, op.name, silu)

    def _layer(self, group: Group, ops: tuple[GraphOp, ...], after: Group | None) -> None:
        """One layer; `after` is the group that takes over behind it."""
        norm, qkv, rope, attend, o_proj, add, post, gate_up, silu, down, add_mlp = ops
        assert (rope.kind, attend.kind, silu.kind) == (Kind.ROPE, Kind.ATTEND, Kind.SILU)
        self._norm(group, norm, "attn.in")
        self._linear(group, qkv, "attn.in", "qkv")
        self._attention(group, rope, attend)
        self.moves.exchange(group, attend.name, "attn.out", Split.HEADS)
        self._gather(group, o_proj.name, "attn.out", "o.in", Split.HEADS)
        self._linear(group, o_proj, "o.in", "o.out")
        self.moves.exchange(group, o_proj.name, "o.out", Split.HIDDEN)
        self._add(group, add, "o.out")
        ahead = after if self._goes_ahead(group) else None
        if ahead is not None:
            self.moves.hand_over(group, ahead, add.name)
        self._norm(group, post, "mlp.in")
        self._linear(group, gate_up, "mlp.in", "gate_up")
        self._silu(group, silu)
        self.moves.exchange(group, silu.name, "mlp.mid", Split.INTER)
        self._gather(group, down.name, "mlp.mid", "down.in", Split.INTER)
        self._linear(group, down, "down.in", "mlp.out", leaves=after is not None)
        self.moves.exchange(group, down.name, "mlp.out", Split.HIDDEN, ahead)
        self._add(group, add_mlp, "mlp.out", ahead)
        if after is not None and ahead is None:
            self.moves.hand_over(group, after, add_mlp.name)

    def _goes_ahead(self, group: Group) -> bool:
        """Whether the residual leaves a group before the sum that ends its last layer.

        So it does in a decode step, while the MLP runs: then only the MLP's result is left to go,
        and the next group adds it. Not from a chip alone, which adds with no exchange before; nor
        with chunks of a prompt, which follow each other: it would keep the next group waiting with
        half of its input.
        """
        return self.kind.decode and len(group.chips) > 1

    def _head(self, group: Group) -> None:
        norm, lm_head = self.partition.graph.head
        self._norm(group, norm, "head.in")
        self._linear(group, lm_head, "head.in", "logits", leaves=not self.top_k)
        host, buffer = self.partition.layout.chips, "logits"
        for rank, chip in enumerate(group.chips):
            size = result_bytes(self.partition, rank, self.top_k)
            first, last = group.vocab[rank]
            if last == first:
                continue
            if self.top_k:
                buffer = "top_k"
                top = TopK(
                    k=min(self.top_k, last - first), n=last - first,
                    x=self.buffers[chip]["logits"], y=self.buffers[chip][buffer],
                    first_column=first,
                )  # fmt: skip
                self._op(chip, "sample.top_k", top)
            dst = (host, self.host.results[chip])
            src = (chip, self.buffers[chip][buffer])
            self.moves.send("host.result", src, [dst], vectors_of(size))

    def _done(self, group: Group) -> None:
        """A prefill step ends with one vector to the host, so that the host knows."""
        host, chip = self.partition.layout.chips, group.chips[0]
        src = (chip, self.buffers[chip]["residual"])
        self.moves.send("host.done", src, [(host, self.host.results[chip])], 1)
