"""One step as a list of operations and transfers in dependency order, without cycles yet.

The order is by place in the graph, then by chip: when a transfer is planned, everything that its
receiver does earlier in the program is already in the list, so the scheduler sees every hazard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chip.ops.cost import C2C_TURN, TURNS
from chip.ops.operations import Opcode, row_bytes, segment_offsets
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
    opcode: Opcode
    name: str
    args: dict[str, Any]


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
        self.host = host_memory(partition, kind, top_k)
        self.arrives: dict[str, int] = {}  # of the next norm: a residual that comes off a link
        self.before: dict[tuple[int, str], dict[str, Any]] = {}  # a product's prologue, by buffer
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
                self.arrives = {"arrives": self._slot(host=before is None)}
            for index in group.layers:
                last = index == group.layers[-1]
                self._layer(group, self.partition.graph.layers[index], after if last else None)
        if self.kind.decode:
            self._head(groups[-1])
        else:
            self._done(groups[-1])
        return self.items

    # -- operations

    def _op(self, chip: int, opcode: Opcode, name: str, **args: Any) -> None:
        self.items.append(Planned(chip=chip, opcode=opcode, name=name, args=args))

    def _quantised(self, chip: int, buffer: str, value: str, scale: str) -> dict[str, Any]:
        out: dict[str, Any] = {value: self.buffers[chip][buffer]}
        if self.dtype == "int8":
            out[scale] = self.buffers[chip][f"{buffer}.scale"]
        return out

    def _activations(
        self, chip: int, opcode: Opcode, name: str, source: str, buffer: str, **args: Any
    ) -> None:
        """Make quantised rows of a buffer: in an operation of their own, or in the product's."""
        src = self.buffers[chip][source]
        if self.fuses:
            q = self._quantised(chip, buffer, "q", "qs")
            self.before[chip, buffer] = {"prologue": str(opcode), "src": src, **q, **args}
            return
        operand = "x" if opcode is Opcode.NORM else "src"
        self._op(
            chip, opcode, name, rows=self.kind.rows, dtype=self.dtype,
            **{operand: src}, **args, **self._quantised(chip, buffer, "q", "s"),
        )  # fmt: skip

    def _norm(self, group: Group, op: GraphOp, buffer: str) -> None:
        more = self.arrives if self.fuses else {"hidden": op.features}
        for chip in group.chips:
            self._activations(
                chip, Opcode.NORM, op.name, "residual", buffer,
                gamma=self.constants[chip][op.name], eps=self.config.rms_norm_eps, **more,
            )  # fmt: skip
        self.arrives = {}

    def _gather(self, group: Group, name: str, source: str, buffer: str, split: Split) -> None:
        shares = group.shares(split, self.config.head_dim)
        for chip in group.chips:
            self._activations(chip, Opcode.GATHER, name, source, buffer, shares=shares)

    def _epilogue(self, group: Group, op: GraphOp) -> str | None:
        """Name what follows a product as a part of it: for one row, where nothing is exchanged."""
        if not self.fuses:
            return None
        if op.split is Split.HIDDEN and len(group.chips) == 1:
            return "add"
        return "silu" if op.split is Split.INTER else None

    def _slot(self, *, host: bool) -> int:
        """Return the cycles that a vector takes on links between chips, or on the host's."""
        return max(link.slot_cycles for link in self.network.links if link.is_host == host)

    def _on_links(self, group: Group, op: GraphOp, n: int, leaves: bool) -> dict[str, int]:
        """Return what a product must know of links: the pace of its result, and room for vectors.

        A chip alone has nothing on its links until its result leaves; one of several may.
        """
        out: dict[str, int] = {}
        slot = self._slot(host=op.split is Split.VOCAB) if leaves else GAPS
        alone = len(group.chips) == 1
        if leaves:
            out["pace"] = slot
        if leaves or not alone:
            out["gaps"] = max(C2C_TURN, min(slot // C2C_TURN * C2C_TURN, GAPS))
        if leaves and alone:
            out["gaps_last"] = vectors_of(row_bytes(n, 4)) * slot + 4 * GAPS
        return out

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
            target = {"add": "residual", "silu": "mlp.mid"}[epilogue]
        for rank, chip in enumerate(group.chips):
            weight = weight_of(self.config, group, rank, op)
            if not weight.n:
                continue
            made = self.before.get((chip, source))
            args = dict(made or self._quantised(chip, source, "x", "s"))
            if self.dtype == "int8":
                args["sw"] = self.constants[chip][f"{op.name}.scale"]
            if op.split is Split.VOCAB:
                args["first_column"] = group.vocab[rank][0]
            if epilogue is not None:
                args["epilogue"] = epilogue
            if self.fuses:
                out = leaves or (half and len(group.chips) > 1)
                args |= self._on_links(group, op, weight.n, out)
            args["r" if epilogue == "add" else "y"] = self.buffers[chip][target] + offsets[rank]
            self._op(
                chip, Opcode.MATMUL, op.name, w=self.constants[chip][op.name],
                rows=self.kind.rows, k=op.in_features, n=weight.n, out="f16" if half else "f32",
                dtype=self.dtype, **args,
            )  # fmt: skip

    def _attention(self, group: Group, rope: GraphOp, attend: GraphOp) -> None:
        layer = rope.name.rsplit(".", 2)[0]
        shares = group.shares(Split.HEADS, self.config.head_dim)
        offsets = segment_offsets(shares, self.kind.rows)
        for rank, chip in enumerate(group.chips):
            (first, last), (kv_first, kv_last) = group.heads[rank], group.kv_heads[rank]
            if last == first:
                continue
            buffers = self.buffers[chip]
            shape = {
                "rows": self.kind.rows,
                "heads": last - first,
                "kv_heads": kv_last - kv_first,
                "head_dim": self.config.head_dim,
                "context": self.context,
                "dtype": self.dtype,
                "kv": self.constants[chip][f"{layer}.kv"],
                **self._quantised(chip, "query", "q", "sq"),
            }
            scratch = {"scratch": buffers["scores"]}
            if self.dtype == "int8":
                shape["kvs"] = self.constants[chip][f"{layer}.kv.scale"]
                scratch["stats"] = buffers["stats"]
            qkv, rows = buffers["qkv"], buffers["rope"]
            self._op(chip, Opcode.ROPE, rope.name, qkv=qkv, rope=rows, **shape)
            kv_of = self.partition.kv_of(group, rank)
            self._op(
                chip, Opcode.ATTEND, attend.name, y=buffers["attn.out"] + offsets[rank],
                bucket=self.kind.bucket, kv_of=kv_of, **scratch, **shape,
            )  # fmt: skip

    def _add(self, group: Group, op: GraphOp, source: str, after: Group | None = None) -> None:
        """Add the group's segments to the residual, on its own chips or on those of the next."""
        if self.fuses and len(group.chips) == 1:
            return  # a part of the product
        shares = group.shares(Split.HIDDEN, self.config.head_dim)
        to, source = (group, source) if after is None else (after, HANDED)
        for chip in to.chips:
            buffers = self.buffers[chip]
            self._op(
                chip, Opcode.ADD, op.name, x=buffers["residual"], src=buffers[source],
                shares=shares, rows=self.kind.rows,
            )  # fmt: skip

    def _silu(self, group: Group, op: GraphOp) -> None:
        if self.fuses:
            return  # a part of the product
        shares = group.shares(Split.INTER, self.config.head_dim)
        offsets = segment_offsets(shares, self.kind.rows)
        for rank, chip in enumerate(group.chips):
            buffers = self.buffers[chip]
            if shares[rank]:
                self._op(
                    chip, Opcode.SILU, op.name, x=buffers["gate_up"],
                    y=buffers["mlp.mid"] + offsets[rank], rows=self.kind.rows, n=shares[rank],
                    k=self.config.hidden_size, dtype=self.dtype,
                )  # fmt: skip

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
                self._op(
                    chip, Opcode.TOPK, "sample.top_k", x=self.buffers[chip]["logits"],
                    y=self.buffers[chip][buffer], n=last - first,
                    k=min(self.top_k, last - first), first_column=first,
                )  # fmt: skip
            dst = (host, self.host.results[chip])
            src = (chip, self.buffers[chip][buffer])
            self.moves.send("host.result", src, [dst], vectors_of(size))

    def _done(self, group: Group) -> None:
        """A prefill step ends with one vector to the host, so that the host knows."""
        host, chip = self.partition.layout.chips, group.chips[0]
        src = (chip, self.buffers[chip]["residual"])
        self.moves.send("host.done", src, [(host, self.host.results[chip])], 1)
