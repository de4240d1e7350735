"""MATMUL of many rows: each array of the MXM has rows of its own, one a cycle.

An array is a plane (int8), or a pair of planes (fp16). A job is a block of up to 320 columns for a
chunk of rows. Its passes follow each other: in each, one tile of K (320 values; fp16: half of it)
is in the array, the chunk's rows stream through it, and the next tile loads behind it. In the last
pass the sums of each row leave as they are made: the VXM dequantises and rounds them on their way
to memory. Where the chip has links, rows pause there, so that vectors find the port free. Arrays
take the next job as they come free, so that all are busy to the end.

Rows lie in the feed slices (chip/sram.py), at least one for each array. The rows of a pass come
from all of them in turn; two arrays that begin on different turns never meet. Results go to the
work slices, which take one row's block a cycle, so that one job at a time is in its last pass.

Weights come on 16 streams a side, from both hemispheres: a plane holds all columns of its block.
Seen from the planes, those of their own hemisphere arrive on even cycles and the others on odd
ones. A slice `d` hops from the VXM is 2 d hops nearer to its own planes than to the others, an even
number, so no slice is read for both sides in one cycle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from chip.errors import TemplateError
from chip.floorplan import Role, alu, mem, mxm, sxm
from chip.isa.instructions import ABC, ACC, IW, LW, Alu, AluOp, Permute, Read, Write
from chip.isa.issue import Issue
from chip.isa.operands import Group, Held, In, Source, Stream, Tap, group
from chip.ops.product import Activations, Matmul, Plain
from chip.ops.rows import item_bytes, row_bytes
from chip.spec import RUN, VECTOR_BYTES, ChipSpec, pad_vector, vectors
from chip.sram import feed_start, near_place
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk
from compiler.codegen.core.parts import LANES
from compiler.codegen.core.template import Template
from compiler.codegen.core.uses import Use, Uses, together
from compiler.codegen.products.columns import Columns
from compiler.codegen.products.resources import STREAMED

SCALES = VECTOR_BYTES // 4  # rows whose scales share a vector
SCALE_VECTORS = 4  # of a chunk, at most: each has an ALU's register
LARGEST = SCALE_VECTORS * SCALES  # rows of a chunk
TRIED = 3  # sizes of chunks
EVEN = 4  # rows of a chunk are a multiple: arrays then keep their turns of the feed slices
LOAD = 42  # cycles in which a tile of each plane of a side is loaded
BURST, PAUSE = 20, 4  # a last pass: rows that follow each other, then cycles that links may have
EAST = 1


@dataclass(frozen=True, slots=True)
class Job:
    """A block of columns for `rows` rows from row `first` on."""

    block: Columns
    first: int
    rows: int

    @property
    def scale_vectors(self) -> range:
        """Vectors of the rows' scales."""
        return range(self.first // SCALES, -(-(self.first + self.rows) // SCALES))


@dataclass(frozen=True, slots=True)
class Piece:
    """Weights that load in one cycle: vectors `vector`, `vector` + `step`, ... of the operand."""

    hemisphere: int
    vector: int
    step: int
    count: int
    column: int


@dataclass(frozen=True, slots=True)
class Pass:
    """One tile of a job in an array: its loads, and when rows arrive from `start` on."""

    array: int
    job: Job
    tile: int
    start: int
    loads: tuple[tuple[int, Piece], ...]  # (arrival, what)
    first: bool  # of its job
    last: bool
    pauses: bool  # between rows, if it is the last

    @property
    def bursts(self) -> list[tuple[int, int, int]]:
        """Return (row, arrival, rows) of rows that follow each other, one a cycle."""
        if not (self.last and self.pauses):
            return [(0, self.start, self.job.rows)]
        return [
            (row, self.start + row // BURST * (BURST + PAUSE), min(BURST, self.job.rows - row))
            for row in range(0, self.job.rows, BURST)
        ]

    @property
    def end(self) -> int:
        """Arrival of the last row."""
        _, arrival, rows = self.bursts[-1]
        return arrival + rows - 1


@dataclass(frozen=True, slots=True)
class Drain:
    """A last pass: which registers hold scales, and the port's cycles at which they are read."""

    of: Pass
    columns: int  # which of the two registers of columns' scales
    rows: int  # which of the two sets of rows' scales
    port: int  # the columns' scales are read here, the rows' behind
    fresh: bool  # the rows' scales are new


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """The arrays of one dtype, and how a product's tiles come to them."""

    clock: Clock
    int8: bool
    width: int  # of a row of activations, in vectors
    tiles: int  # passes of a job

    @property
    def count(self) -> int:
        return 4 if self.int8 else 2

    def side(self, array: int) -> int:
        """Return the hemisphere of an array."""
        return array * 2 // self.count

    def plane(self, array: int) -> int:
        """Return the plane whose queues drive it."""
        return array * 4 // self.count

    def pieces(self, block: Columns, tile: int) -> list[Piece]:
        """Cut a tile's columns into what lies in one run of memory."""
        step = 1 if self.int8 else 2
        first = step * (block.vector + tile // step * block.width) + tile % step
        out, column = list[Piece](), 0
        while column < block.width:
            run, within = divmod(first + step * column, RUN)
            taken = min(-(-(RUN - within) // step), block.width - column)
            out.append(Piece(run % 2, first + step * column, step, taken, column))
            column += taken
        return out

    def lead(self, array: int, hemisphere: int) -> int:
        """Return the cycles from a read in a feed slice to its arrival at an array."""
        clock = self.clock
        away = clock.near if hemisphere != self.side(array) else -clock.near
        return clock.of["READ"] + clock.to_mxm + away

    @property
    def deepest(self) -> int:
        """Return the longest way of a row."""
        return self.clock.of["READ"] + self.clock.to_mxm + self.clock.near

    @property
    def far(self) -> int:
        """Return the longest way of a weight: across the chip."""
        return self.clock.of["READ"] + self.clock.to_mxm + self.clock.far

    @property
    def drained(self) -> int:
        """Cycles from a row's arrival at an array to its sums' at the VXM."""
        return self.clock.of["ABC"] + self.clock.of["ACC"] + self.clock.to_mxm


@dataclass(slots=True)
class _Timetable:
    """What is taken while passes are placed, one after another."""

    product: StreamedProduct
    feed: list[int] = field(default_factory=list)  # of each feed slice: cycles read, as bits
    loads: list[set[int]] = field(default_factory=lambda: [set(), set()])  # of each side
    drains: list[Drain] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.feed = [0] * (2 * self.arrays.clock.spec.feed_slices)

    @property
    def arrays(self) -> Arrays:
        return self.product.arrays

    def load(self, array: int, block: Columns, tile: int, after: int) -> list[tuple[int, Piece]]:
        """Return when each piece of a tile arrives, from a cycle on."""
        taken, side = self.loads[self.arrays.side(array)], self.arrays.side(array)
        out, at = list[tuple[int, Piece]](), after
        for piece in self.arrays.pieces(block, tile):
            odd = piece.hemisphere != side
            at += (at + odd) % 2
            while at in taken:
                at += 2
            out.append((at, piece))
            at += 1
        return out

    def reads(self, one: Pass) -> list[int]:
        """Return each feed slice's reads of a pass, as bits: bit 0 is `start - lead` cycles."""
        slices, out = len(self.feed), [0] * len(self.feed)
        step = self.arrays.width % slices
        deepest = self.arrays.deepest
        first = (one.job.first * self.arrays.width + one.tile) % slices
        for row, arrival, rows in one.bursts:
            for turn in range(min(slices, rows)):
                place = (first + (row + turn) * step) % slices
                times = len(range(turn, rows, slices))
                late = arrival - one.start + turn + deepest
                late -= self.arrays.lead(one.array, place % 2)
                out[place] |= _comb(times, slices) << late
        return out

    def fits(self, reads: Sequence[int], at: int) -> bool:
        return not any(taken >> at & wanted for taken, wanted in zip(self.feed, reads, strict=True))

    def place(self, one: Pass) -> Pass:
        """Return the pass at its first possible start, from its `start` on."""
        deepest = self.arrays.deepest
        reads = self.reads(replace(one, start=0))
        start = max(one.start, deepest)
        while not self.fits(reads, start - deepest):
            start += 1
        return replace(one, start=start)

    def take(self, one: Pass) -> None:
        deepest = self.arrays.deepest
        for place, wanted in enumerate(self.reads(one)):
            self.feed[place] |= wanted << one.start - deepest
        self.loads[self.arrays.side(one.array)].update(at for at, _ in one.loads)

    def first_port(self, one: Pass) -> int:
        """Return the port's cycle of the first result of a last pass."""
        return one.start + self.arrays.drained + self.product.out_delay

    def drain_from(self, job: Job) -> int:
        """Return when a job's last pass may begin, after the one before.

        Its scales are read before the results of the pass before it take the port, behind those of
        the last but one; they are in their registers when they are needed.
        """
        if not self.drains:
            return 0
        before = self.drains[-1]
        landed = self.first_port(before.of) - 1 + self.product.landed
        needed = self.product.columns_needed
        if before.of.job.first != job.first:
            needed = min(needed, -self.product.sent)
        reads = SCALE_VECTORS + max(1, len(self.product.of_columns))
        return max(before.of.end + 1 + reads, landed - self.arrays.drained - needed)

    def drain(self, one: Pass) -> None:
        """Note a last pass: its scales are read before the results of the pass before it."""
        before = self.drains[-1] if self.drains else None
        same = before is not None and before.of.job.first == one.job.first
        columns = max(1, len(self.product.of_columns))
        reads = columns + (0 if same else len(one.job.scale_vectors))
        in_time = one.start + 1 + self.arrays.drained - self.product.sent - self.product.landed
        until = min(one.start, in_time) if before is None else self.first_port(before.of)
        rows = 0 if before is None else before.rows if same else 1 - before.rows
        self.drains.append(Drain(one, len(self.drains) % 2, rows, until - reads, not same))


def _comb(times: int, apart: int) -> int:
    """Return bits that are `apart` each other."""
    return sum(1 << apart * n for n in range(times))


def blocks_of(n: int, tiles: int) -> list[Columns]:
    """Cut n columns into blocks of 320 or less; `tiles` of K."""
    return [Columns(first, min(LANES, n - first), first * tiles) for first in range(0, n, LANES)]


def chunks_of(rows: int, size: int) -> list[tuple[int, int]]:
    """Cut rows into chunks: (first, rows)."""
    return [(first, min(size, rows - first)) for first in range(0, rows, size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedProduct:
    """A laid out product: passes in order of their starts, and what their sums take."""

    op: Matmul
    arrays: Arrays
    passes: tuple[Pass, ...]
    drains: tuple[Drain, ...]

    @property
    def of_columns(self) -> dict[str, tuple[int, ...]]:
        """Return what columns have of their own: operand -> registers, of this job and the next."""
        scales = {"sw": STREAMED.columns} if self.arrays.int8 else {}
        return scales if self.op.b is None else {**scales, "b": STREAMED.more}

    @property
    def row_registers(self) -> tuple[int, ...]:
        """Registers of rows' scales, for two chunks."""
        return STREAMED.rows if self.op.b is not None else STREAMED.rows + STREAMED.more

    @property
    def chain(self) -> list[tuple[int, AluOp, int]]:
        """Return (ALU, operation, cycles after the sums' arrival) of what is done to sums."""
        s, of = STREAMED, self.arrays.clock.of
        steps = [(s.round, AluOp.COPY if self.op.out == "f32" else AluOp.CVT_F16)]
        if self.op.b is not None:
            steps = [(s.biased, AluOp.ADD), *steps]
        if self.arrays.int8:
            scaled = [(s.by_row, AluOp.MUL), (s.by_column, AluOp.MUL)]
            steps = [(s.convert, AluOp.CVT_F32), *scaled, *steps]
        return [
            (on, op, sum(of[before] for _, before in steps[:n]))
            for n, (on, op) in enumerate(steps)
        ]  # fmt: skip

    @property
    def sent(self) -> int:
        """Cycles, before the sums' arrival at the VXM, at which a row's scale leaves it."""
        clock = self.arrays.clock
        way = clock.of["COPY"] + 2 * clock.to_sxm + clock.of["PERMUTE"]
        return way - clock.of["CVT_F32"]

    @property
    def landed(self) -> int:
        """Cycles from the port at which scales are read to their arrival in a register."""
        return self.arrays.clock.fetch + self.arrays.clock.of["COPY"]

    @property
    def columns_needed(self) -> int:
        """Cycles from the sums' arrival at the VXM to where columns' scales meet them."""
        return self.met(STREAMED.by_column) if self.arrays.int8 else 0

    def met(self, number: int) -> int:
        """Cycles from the sums' arrival at the VXM to their issue on an ALU of the chain."""
        return next(at for on, _, at in self.chain if on == number)

    @property
    def out_delay(self) -> int:
        """Cycles from the sums' arrival at the VXM to the port of the work slices."""
        _, op, at = self.chain[-1]
        return at + self.arrays.clock.of[op] + self.arrays.clock.near

    @property
    def end(self) -> int:
        """Cycle from which all results can be read."""
        last = max(drain.of.end for drain in self.drains)
        written = self.arrays.clock.of["WRITE"] + 1
        return last + self.arrays.drained + self.out_delay + written

    # -- instructions

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue | Bulk]:
        """Yield every instruction; `base` gives an operand's first vector in SRAM.

        Raises TemplateError for rows that do not begin in the first feed slice.
        """
        spec = self.arrays.clock.spec
        behind = base("x") - feed_start(spec) // VECTOR_BYTES
        if behind < 0 or behind % (2 * spec.feed_slices):
            raise TemplateError(
                f"rows of a product: wanted a whole turn of the {2 * spec.feed_slices} feed slices "
                f"from their first vector on, got vector {behind}"
            )
        for one in self.passes:
            yield from self._load(one)
            yield from self._multiply(one, base("x"))
        for drain in self.drains:
            yield from self._columns(drain, base)
            if self.arrays.int8:
                yield from self._scales(drain, base)
            yield from self._results(drain, base("y"))

    def _load(self, one: Pass) -> Iterator[Issue | Bulk]:
        side = self.arrays.side(one.array)
        load = mxm(self.arrays.plane(one.array), Role.LOAD)
        for cycle, piece in one.loads:
            stream, step = Stream(side == EAST, STREAMED.weights), piece.step
            yield Bulk(load, cycle, "w", piece.vector, stream, piece.count, apart=step)
            yield Issue(load, cycle, LW(stream=stream, count=piece.count, column=piece.column))

    def _multiply(self, one: Pass, base: int) -> Iterator[Issue]:
        """Install the tile, stream the rows through it, add the products up."""
        arrays, clock = self.arrays, self.arrays.clock
        plane, fp16 = arrays.plane(one.array), not arrays.int8
        feed, acc = mxm(plane, Role.FEED), mxm(plane, Role.DRAIN)
        stream = Stream(arrays.side(one.array) == EAST, STREAMED.feed + plane % 2)
        yield Issue(feed, one.start - clock.of["IW"], IW(columns=one.job.block.width))
        out = self._sums(one) if one.last else ()
        started = one.first if arrays.int8 else one.tile < 2
        half = None if arrays.int8 else one.tile % 2
        for row, arrival, rows in one.bursts:
            yield Issue(feed, arrival, ABC(stream=stream, fp16=fp16), rows)
            add = ACC(
                slot=row, step=1, first=started, lanes=one.job.block.width if out else LANES,
                out=out, half=half,
            )  # fmt: skip
            yield Issue(acc, arrival + clock.of["ABC"], add, rows)
            yield from self._reads(one, base, stream, (row, arrival, rows))

    def _sums(self, one: Pass) -> Group:
        """Return the streams of a job's sums."""
        side = self.arrays.side(one.array)
        return group(Stream(side != EAST, STREAMED.sums), vectors(one.job.block.width * 4))

    def _reads(
        self, one: Pass, base: int, stream: Stream, burst: tuple[int, int, int]
    ) -> Iterator[Issue]:
        """Read a burst's rows: each slice has every so manieth of them, a word step apart."""
        spec, (row, arrival, rows) = self.arrays.clock.spec, burst
        slices = 2 * spec.feed_slices
        for turn in range(min(slices, rows)):
            at = one.job.first + row + turn
            side, index, word = near_place(spec, base + at * self.arrays.width + one.tile)
            cycle = arrival + turn - self.arrays.lead(one.array, side)
            read = Read(address=word, stream=stream, step=self.arrays.width)
            yield Issue(mem(side, index), cycle, read, len(range(turn, rows, slices)), slices)

    def _alu(
        self, number: int, cycle: int, op: AluOp, *sources: Source, out: Group = (),
        lanes: int = LANES, n: int = 1,
    ) -> Issue:  # fmt: skip
        a, b = (*sources, None)[:2]
        assert a is not None
        return Issue(alu(number), cycle, Alu(op=op, a=a, b=b, lanes=lanes, out=out), n)

    def _fetched(self, first: int, n: int, port: int) -> tuple[list[Issue], Group]:
        """Read vectors of work memory in one cycle; also where they come to the VXM."""
        reads, taps = [], []
        for vector in range(first, first + n):
            side, index, word = near_place(self.arrays.clock.spec, vector)
            stream = Stream(side != EAST, STREAMED.to_vxm + index)
            reads.append(Issue(mem(side, index), port, Read(address=word, stream=stream)))
            taps.append(Tap(stream))
        return reads, tuple(taps)

    def _columns(self, drain: Drain, base: Callable[[str], int]) -> Iterator[Issue]:
        """Read what a job's columns have of their own into registers, an operand a cycle."""
        job, fetch = drain.of.job, self.arrays.clock.fetch
        width, place = job.block.width, job.block.first * 4 // VECTOR_BYTES
        for port, (operand, registers) in enumerate(self.of_columns.items(), drain.port):
            reads, taps = self._fetched(base(operand) + place, vectors(width * 4), port)
            yield from reads
            number = registers[drain.columns]
            yield self._alu(number, port + fetch, AluOp.COPY, In(taps), lanes=width)

    def _scales(self, drain: Drain, base: Callable[[str], int]) -> Iterator[Issue]:
        """Read a job's rows' scales into registers, then send each row's to its sums."""
        job, fetch = drain.of.job, self.arrays.clock.fetch
        first = job.scale_vectors.start
        for vector in job.scale_vectors if drain.fresh else ():
            port = drain.port + len(self.of_columns) + vector - first
            reads, taps = self._fetched(base("s") + vector, 1, port)
            yield from reads
            number = self._row_register(drain, vector)
            yield self._alu(number, port + fetch, AluOp.COPY, In(taps), lanes=SCALES)
        for row, arrival, rows in drain.of.bursts:
            for n in range(rows):
                yield from self._row_scale(drain, row + n, arrival + n)

    def _row_register(self, drain: Drain, vector: int) -> int:
        registers, nth = self.row_registers, vector - drain.of.job.scale_vectors.start
        return registers[drain.rows * (len(registers) // 2) + nth]

    def _row_scale(self, drain: Drain, row: int, arrival: int) -> Iterator[Issue]:
        """Bring a row's scale to every lane, as its sums have become fp32."""
        clock = self.arrays.clock
        vector, lane = divmod(drain.of.job.first + row, SCALES)
        at = arrival + self.arrays.drained - self.sent
        out = (Tap(Stream(True, STREAMED.scales)),)
        held = Held(self._row_register(drain, vector))
        yield self._alu(STREAMED.out, at, AluOp.COPY, held, lanes=SCALES, out=out)
        job = drain.of.job
        turn = Permute(
            src=out, dst=_scale_taps(job), item=4, lanes=SCALES, out_lanes=job.block.width,
            map=(lane,) * job.block.width,
        )  # fmt: skip
        yield Issue(sxm(EAST, STREAMED.turn), at + clock.of["COPY"] + clock.to_sxm, turn)

    def _results(self, drain: Drain, base: int) -> Iterator[Issue]:
        """Dequantise and round sums, and write them."""
        width = drain.of.job.block.width
        first = In(self._sums(drain.of), "i32" if self.arrays.int8 else "f32")
        others: dict[int, Source] = {STREAMED.by_row: In(_scale_taps(drain.of.job))}
        for on, operand in ((STREAMED.by_column, "sw"), (STREAMED.biased, "b")):
            if operand in self.of_columns:
                others[on] = Held(self.of_columns[operand][drain.columns])
        for row, arrival, rows in drain.of.bursts:
            at = arrival + self.arrays.drained
            *rest, (number, op, late) = self.chain
            value: Source = first
            for on, step, after in rest:
                extra = (others[on],) if on in others else ()
                yield self._alu(on, at + after, step, value, *extra, lanes=width, n=rows)
                value = Held(on)
            for n in range(rows):
                writes, taps = self._stored(drain.of.job, base, row + n, at + n + self.out_delay)
                yield self._alu(number, at + n + late, op, value, lanes=width, out=taps)
                yield from writes

    def _stored(self, job: Job, base: int, row: int, port: int) -> tuple[list[Issue], Group]:
        """Write a row's block in one cycle of the port."""
        op, spec = self.op, self.arrays.clock.spec
        first = base + (job.first + row) * (row_bytes(op.n, op.out_bytes) // VECTOR_BYTES)
        first += job.block.first * op.out_bytes // VECTOR_BYTES
        writes, taps = [], []
        for vector in range(first, first + vectors(job.block.width * op.out_bytes)):
            side, index, word = near_place(spec, vector)
            stream = Stream(side == EAST, STREAMED.results + index)
            writes.append(Issue(mem(side, index), port, Write(address=word, stream=stream)))
            taps.append(Tap(stream))
        return writes, tuple(taps)

    # -- what it asks of the ALUs

    def uses(self) -> Iterator[Uses]:
        """Yield what sums and scales ask of the VXM."""
        of, rows = self.arrays.clock.of, list[int]()
        for drain in self.drains:
            for _, arrival, n in drain.of.bursts:
                rows += range(arrival + self.arrays.drained, arrival + self.arrays.drained + n)
        chain = [*self.chain]
        table = [
            Use(on, at, at + of[op], at + of[op], op)
            for (on, op, at) in chain
        ]  # fmt: skip
        if self.arrays.int8:
            table.append(Use(STREAMED.out, -self.sent, -self.sent + of["COPY"],
                             -self.sent + of["COPY"], AluOp.COPY))  # fmt: skip
        yield replace(together("sums", table), starts=np.array(rows))
        if self.of_columns:
            yield together("scales", list(self._kept()))

    def _kept(self) -> Iterator[Use]:
        """Yield the registers of scales, each to its last use."""
        arrays, landed = self.arrays, self.landed
        last: dict[int, int] = {}  # of a set of rows' scales, by its number
        for number, drain in enumerate(self.drains):
            if drain.fresh:
                fresh = number
            last[fresh] = drain.of.end + arrays.drained - self.sent
        meets = {"sw": STREAMED.by_column, "b": STREAMED.biased}
        for number, drain in enumerate(self.drains):
            at = drain.port + arrays.clock.fetch
            for nth, (operand, registers) in enumerate(self.of_columns.items()):
                done = drain.of.end + arrays.drained + self.met(meets[operand])
                on = registers[drain.columns]
                yield Use(on, at + nth, drain.port + nth + landed, done, AluOp.COPY)
            fresh_rows = drain.of.job.scale_vectors if drain.fresh and arrays.int8 else ()
            for nth, vector in enumerate(fresh_rows, len(self.of_columns)):
                on = self._row_register(drain, vector)
                yield Use(on, at + nth, drain.port + nth + landed, last[number], AluOp.COPY)


def _scale_taps(job: Job) -> Group:
    """Return the streams of a row's scale, in a lane for each of a job's columns."""
    return group(Stream(False, STREAMED.scale), vectors(job.block.width * 4))


def lay_out(op: Matmul, spec: ChipSpec, size: int) -> StreamedProduct:
    """Place pass after pass, on the array that is free first; chunks are of `size` rows."""
    clock, int8 = Clock(spec), op.dtype == "int8"
    tiles = vectors(op.k) * (1 if int8 else 2)
    width = row_bytes(pad_vector(op.k), item_bytes(op.dtype)) // VECTOR_BYTES
    arrays = Arrays(clock=clock, int8=int8, width=width, tiles=tiles)
    product = StreamedProduct(op=op, arrays=arrays, passes=(), drains=())
    table = _Timetable(product)
    jobs = [
        Job(block, first, rows)
        for first, rows in chunks_of(op.rows, size)
        for block in blocks_of(op.n, vectors(op.k))
    ]
    jobs.sort(key=lambda job: -job.rows)
    passes = list[Pass]()
    cursors = [_Cursor(number) for number in range(arrays.count)]
    while cursors:
        cursor = min(cursors, key=lambda c: (c.ready, c.array))
        if not cursor.left:
            if not jobs:
                cursors.remove(cursor)
                continue
            cursor.job, cursor.left = jobs.pop(0), list(range(tiles))
        one = _next_pass(cursor, table)
        passes.append(one)
        table.take(one)
        if one.last:
            table.drain(one)
        cursor.installed = one.start - clock.of["IW"]
        cursor.ready = one.end + 2
        cursor.left.remove(one.tile)
    return replace(product, passes=tuple(passes), drains=tuple(table.drains))


@dataclass(slots=True)
class _Cursor:
    """How far an array has come."""

    array: int
    ready: int = 0  # when its next rows may arrive
    installed: int = 0  # when its last tile was: then the buffer is free
    job: Job | None = None
    left: list[int] = field(default_factory=list)  # tiles of the job


def _next_pass(cursor: _Cursor, table: _Timetable) -> Pass:
    """Return an array's next pass: of the tiles that are left, one that can begin first.

    fp16 sums are in the order of tiles; int8 sums are exact in any.
    """
    job, arrays = cursor.job, table.arrays
    assert job is not None
    of = arrays.clock.of
    last, first = len(cursor.left) == 1, len(cursor.left) == arrays.tiles
    least = max(cursor.ready, table.drain_from(job) if last else 0)
    best: Pass | None = None
    for tile in cursor.left[: len(table.feed) if arrays.int8 else 1]:
        after = max(cursor.installed, arrays.far)
        loads = table.load(cursor.array, job.block, tile, after)
        start = max(least, loads[-1][0] + of["LW"] + of["IW"])
        pauses = table.product.op.links.gaps is not None
        one = table.place(Pass(cursor.array, job, tile, start, tuple(loads), first, last, pauses))
        if best is None or one.start < best.start:
            best = one
        if best.start == least:
            break
    assert best is not None
    return best


def fits(op: Matmul, spec: ChipSpec) -> bool:
    """Tell whether a product can be streamed: it has its rows in feed slices, for each array."""
    arrays = 4 if op.dtype == "int8" else 2
    plain = isinstance(op.source, Activations) and isinstance(op.result, Plain)
    slices = spec.slices // spec.hemispheres - spec.near_slices
    lanes = 2 * RUN if op.dtype == "int8" else slices % 2 * 2 * RUN
    return (
        plain and op.rows > 1 and 2 * spec.feed_slices >= arrays and spec.work_slices == 2
        and slices >= lanes > 0
    )  # fmt: skip


def matmul_rows(op: Matmul, spec: ChipSpec) -> Template:
    """x . w of many rows, scaled, fp32 or fp16."""
    product = min((lay_out(op, spec, size) for size in _sizes(op, spec)), key=lambda p: p.end)
    fed = min(one.start for one in product.passes) - product.arrays.deepest
    scales = min(drain.port for drain in product.drains)
    return Template(
        placed=(),
        cycles=product.end,
        needed={"x": (fed, fed), "s": (scales, scales)},
        streams=(product,),
        uses=tuple(product.uses()),
    )


def _sizes(op: Matmul, spec: ChipSpec) -> list[int]:
    """Return sizes of chunks to try, by how evenly their jobs fill the arrays."""
    arrays, blocks = (4 if op.dtype == "int8" else 2), -(-op.n // LANES)

    def cycles(size: int) -> int:
        done = [0] * arrays
        chunks = [rows for _, rows in chunks_of(op.rows, size)]
        for rows in sorted(chunks * blocks, reverse=True):
            done[done.index(min(done))] += max(rows + 2, LOAD)
        return max(done)

    most = LARGEST if op.b is None or op.dtype != "int8" else LARGEST - SCALES
    largest = min(most, spec.mxm_accumulator_rows)
    if largest > most - SCALES:
        largest = largest // SCALES * SCALES
    least = -(-op.rows // largest)
    even = {-(-op.rows // n) for n in range(least, least + 2 * arrays)}
    sizes = {min(op.rows, -(-size // EVEN) * EVEN) for size in even} | {min(op.rows, largest)}
    sizes = {size for size in sizes if size <= most - SCALES or size == largest}
    return sorted(sizes, key=lambda size: (cycles(size), -size))[:TRIED]
