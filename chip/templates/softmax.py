"""One head's attention: softmax in four passes over its tokens, then weights times values."""

from __future__ import annotations

from chip.floorplan import Role
from chip.isa import ABC, ACC, AluOp
from chip.operand import Lane, Position, Stream
from chip.spec import VECTOR_BYTES, vectors
from chip.sram import RUN
from chip.templates.attention import (
    COMMITTED,
    KEYS,
    NEVER,
    OUT,
    PINNED,
    TURNED,
    WEIGHED,
    Attention,
    Map,
    Part,
    Piece,
    Timed,
)
from chip.templates.builder import LANES, Block, Load, Node, Ref
from chip.templates.columns import PLANE_OF_RUN, spread_of
from chip.templates.reductions import lane_max, lane_sum
from chip.templates.vector import f32, scale_factor


class Heads(Attention):
    """Builds the pieces of single heads."""

    def head(self, part: Part, head: int) -> Piece:
        """Build one head's piece at the fastest pace at which the ALUs suffice."""
        for self.pace in range(4, 200, 4):
            try:
                return self._head(part, head)
            except OverflowError:
                continue
        raise AssertionError("no pace leaves enough ALUs")

    def _head(self, part: Part, head: int) -> Piece:
        """Softmax of one head's scores, its weights times the values, its result."""
        piece = Piece(Block(self.spec, pinned=PINNED))
        b = piece.block
        peak = self._masked(piece, part, head)
        top = lane_max(b, peak)
        total: Node | None = None
        for v in range(len(self.tokens)):
            low = b.alu(AluOp.SUB, self.scratch(head, v), top, after=top.done + self.pace * v)
            e = b.alu(AluOp.EXP, low, out=self.scratch(head, v).ref)
            total = e if total is None else b.alu(AluOp.ADD, total, e)
        assert total is not None
        root = b.alu(AluOp.RSQRT, lane_sum(b, total))
        share = b.alu(AluOp.MUL, root, root)
        scale, factor = self._weigh(b, head, share)
        fed = self._weights(piece, part, head, factor)
        self._result(piece, part, head, scale, fed)
        b.finish()
        return piece

    def scratch(self, head: int, vector: int) -> Load:
        """Where a head keeps a vector of weights between passes."""
        return Load(Ref("scratch", 4 * (head * len(self.tokens) + vector), 4), "f32")

    def _seen(self, b: Block, vector: int, after: int) -> Node:
        """Mask of the tokens that the row may see; made again where it is needed."""
        return b.alu(AluOp.LE, Lane(vector * LANES), Position(0), after=after)

    def _scales(self, head: int, vector: int, *, value: bool) -> Load:
        first = self.layout.scale_offset(self.kv_of[head], value=value) // VECTOR_BYTES
        count = vectors(self.tokens[vector] * 4)
        return Load(Ref("kvs", first + 4 * vector, count), "f32")

    def _masked(self, piece: Piece, part: Part, head: int) -> Node:
        """Scale and mask the scores into scratch memory; return their maximum."""
        b, many = piece.block, -(-self.bucket // KEYS)
        scale_ref = Ref("sq", 4 * (head // self.layout.heads_per_group), 4)
        lane = head % self.layout.heads_per_group * self.layout.pitch
        at, operand = b.through_sxm(scale_ref, (lane,) * LANES, 4, LANES)
        scale = b.alu(AluOp.COPY, operand, at=at)
        slot = WEIGHED + part.heads.index(head) * many
        peak: Node | None = None
        for number in range(many):
            vectors_here = range(4 * number, min(4 * number + 4, len(self.tokens)))
            planes = sorted({p for v in vectors_here for p in self.planes(v)})
            first = min(LANES, 80 * len(vectors_here))
            arrive = self.drain(piece, planes, slot + number, first, scale.done + 8, [
                (4 * j, {p: spread_of(PLANE_OF_RUN.index(p), j) for p in self.planes(v)}, LANES)
                for j, v in enumerate(vectors_here)
            ])  # fmt: skip
            for j, v in enumerate(vectors_here):
                total = self.sum(b, self.planes(v), 4 * j, LANES, arrive)
                n = self.tokens[v]
                mask = self._seen(b, v, arrive + j * self.pace)
                keys = self._scales(head, v, value=False)
                known = b.alu(AluOp.CHOOSE, mask, keys, f32(0.0), lanes=n)
                factor = b.alu(AluOp.MUL, scale, known)
                score = b.alu(AluOp.MUL, b.alu(AluOp.CVT_F32, total), factor)
                out = self.scratch(head, v).ref
                x = b.alu(AluOp.CHOOSE, self._seen(b, v, factor.cycle), score, NEVER, out=out)
                peak = x if peak is None else b.alu(AluOp.MAX, peak, x)
        assert peak is not None
        return peak

    def _weigh(self, b: Block, head: int, share: Node) -> tuple[Node, Node]:
        """Share out, times the values' scales, into scratch memory; return (scale, factor)."""
        peak: Node | None = None
        for v, n in enumerate(self.tokens):
            p = b.alu(AluOp.MUL, self.scratch(head, v), share, after=share.done + self.pace * v)
            scales = self._scales(head, v, value=True)
            known = b.alu(
                AluOp.CHOOSE,
                self._seen(b, v, p.cycle - 4),
                scales,
                f32(0.0),
                lanes=n,
                after=p.cycle,
            )
            w = b.alu(AluOp.MUL, p, known, out=self.scratch(head, v).ref)
            size = b.alu(AluOp.ABS, w)
            peak = size if peak is None else b.alu(AluOp.MAX, peak, size)
        assert peak is not None
        factor, scale = scale_factor(b, lane_max(b, peak))
        return scale, factor

    def _weights(self, piece: Piece, part: Part, head: int, factor: Node) -> int:
        """Quantise the weights and feed them; return when the last sum is in its row."""
        b, ready, summed = piece.block, 0, 0
        for v in range(len(self.tokens)):
            if not self.once and v % 2 == 0:
                start = max(COMMITTED + self.to_mxm, summed - 8)
                ready = self.values(piece, part, range(v, min(v + 2, len(self.tokens))), start)
            turns = {side: self._order(v, side) for side, _ in self.value_planes(v)}
            after = max(factor.done + self.pace * v, ready - self.to_mxm)
            weight = b.alu(AluOp.MUL, self.scratch(head, v), factor, after=after)
            at = self.feed(piece, AluOp.CVT_I8, weight, turns, weight.done)
            for side, plane in self.value_planes(v):
                stream = Stream(side == 1, TURNED)
                piece.timed.append(Timed(at, ABC(stream=stream), plane, Role.FEED))
                acc = ACC(slot=head % WEIGHED, first=v < 2)
                piece.timed.append(Timed(at + self.delay["ABC"].d_func, acc, plane, Role.DRAIN))
            summed = at + self.delay["ABC"].d_func
        return summed + 1

    def _order(self, vector: int, side: int) -> Map:
        """Lanes of a side's tokens: its runs follow one another."""
        turn: list[int | None] = [None] * LANES
        for lane in range(LANES // 2):
            token = lane // RUN * 2 * RUN + side * RUN + lane % RUN
            if token < self.tokens[vector]:
                turn[lane] = token
        return tuple(turn)

    def _result(self, piece: Piece, part: Part, head: int, scale: Node, after: int) -> None:
        """Scale a head's result into its lanes; store the groups of 320 that are complete."""
        b, dim, heads = piece.block, self.a["head_dim"], self.a["heads"]
        first, place = head * dim, self.place(head)
        planes = sorted({p for v in range(len(self.tokens)) for _, p in self.value_planes(v)})
        lanes = self.layout.heads_per_group * self.layout.pitch
        outs = range(first // LANES, (first + dim - 1) // LANES + 1)
        spreads = []
        for j, number in enumerate(outs):
            turn: list[int | None] = [None] * LANES
            for d in range(dim):
                if (first + d) // LANES == number:
                    turn[(first + d) % LANES] = place + d
            spreads.append((4 * j, dict.fromkeys(planes, tuple(turn)), LANES))
        arrive = self.drain(piece, planes, head % WEIGHED, lanes, after, spreads)
        for j, number in enumerate(outs):
            total = self.sum(b, planes, 4 * j, LANES, arrive)
            y = b.alu(AluOp.MUL, b.alu(AluOp.CVT_F32, total), scale)
            register = OUT[number % 2]
            if first > number * LANES:
                y = b.alu(AluOp.OR, b.register(register), y, on=register)
            else:
                y = b.alu(AluOp.COPY, y, on=register)
            stop = min((number + 1) * LANES, heads * dim)
            if first + dim >= stop:
                n = stop - number * LANES
                b.alu(AluOp.CVT_F16, y, lanes=n, out=Ref("y", 2 * number, vectors(2 * n)))
