"""The instructions of a chain of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from chip.floorplan import Queue, Role, alu, hops, mem, mxm
from chip.isa.instructions import ABC, ACC, IW, LW, Alu, Gather, Read, Write
from chip.isa.issue import Issue
from chip.isa.operands import Group, Held, Immediate, In, Source, Stream, Tap, group
from chip.spec import vectors
from compiler.codegen.convolutions.passes import Chain, Pass, Step
from compiler.codegen.convolutions.places import (
    COLUMN_SLICES,
    EAST,
    I64,
    LOADED,
    WEST,
    Flags,
    Quarter,
    Spots,
    weight_place,
)
from compiler.codegen.convolutions.resources import CONVOLVED

MAPS = 2 * COLUMN_SLICES  # western slices from here on: words of pixels, a slice a plane
COLUMN_VECTORS = 4  # of scales or biases


def lower(chain: Chain) -> list[Issue]:
    """Return all instructions of a chain."""
    out: list[Issue] = []
    for one in chain.passes:
        name = f"{one.job.number}"
        for side in range(2):
            for issue in _side(chain, one, side):
                out.append(Issue(issue.queue, issue.cycle, issue.instruction, issue.n, issue.d,
                                 f"convolution {name}"))  # fmt: skip
        if one.last:
            out += _columns(chain, one)
    return out


def column_word(chain: Chain, number: int, block: int) -> int:
    """Return the word of a column block's scales and biases in the western slices."""
    return sum(len(chain.blocks(n)) for n in range(number)) + block


def map_word(chain: Chain, quarter: Quarter, number: I64, turn: int) -> I64:
    """Return the word at which the words of a pixel and its right neighbours stand."""
    low, high = chain.places.around(quarter)
    return number - low + turn * (high + 1 - low)


def _side(chain: Chain, one: Pass, side: int) -> Iterator[Issue]:
    yield from _load(chain, one, side)
    yield from _multiply(chain, one, side)
    yield from _rows(chain, one, side)
    if one.last:
        yield from _results(chain, one, side)


def _load(chain: Chain, one: Pass, side: int) -> Iterator[Issue]:
    """Load a tile, LOADED columns a cycle, from the side's own slices."""
    spec, columns = chain.spec, one.job.columns
    queue, stream = mxm(2 * side + one.job.pair, Role.LOAD), Stream(side == EAST, CONVOLVED.weights)
    for n in range(min(LOADED, columns)):
        index, word = (int(at) for at in weight_place(spec, one.word, np.array(n)))
        source, times = mem(side, index), len(range(n, columns, LOADED))
        at = one.load - chain.clock.of["READ"] - hops(source, queue, spec)
        lane = Stream(side == EAST, CONVOLVED.weights + n)
        yield Issue(source, at, Read(address=word, stream=lane, step=1), times)
    full, rest = divmod(columns, LOADED)
    if full:
        yield Issue(queue, one.load, LW(stream=stream, count=LOADED, column=0, step=LOADED), full)
    if rest:
        yield Issue(queue, one.load + full, LW(stream=stream, count=rest, column=LOADED * full))


def _multiply(chain: Chain, one: Pass, side: int) -> Iterator[Issue]:
    job, of, plane = one.job, chain.clock.of, 2 * side + one.job.pair
    rows = job.pixels[side][1] - job.pixels[side][0]
    feed = mxm(plane, Role.FEED)
    yield Issue(feed, one.start - of["IW"], IW(columns=job.columns))
    stream = Stream(side == EAST, CONVOLVED.feed + job.pair)
    yield Issue(feed, one.start, ABC(stream=stream), rows)
    out = _sums(one, side) if one.last else ()
    acc = ACC(slot=0, step=1, first=one.first, lanes=job.columns, out=out)
    yield Issue(mxm(plane, Role.DRAIN), one.start + of["ABC"], acc, rows)


def _sums(one: Pass, side: int) -> Group:
    first = CONVOLVED.sums + 4 * one.job.pair
    return group(Stream(side != EAST, first), vectors(4 * one.job.columns))


def _runs(breaks: Flags) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of rows between breaks; `breaks`: true where a run begins."""
    starts = [*np.flatnonzero(breaks).tolist(), len(breaks)]
    yield from pairwise(starts)


def _accesses(
    spots: Spots, at: I64, quarter: Quarter
) -> Iterator[tuple[Queue, int, int, int, int]]:
    """Yield (slice, cycle, word, n, d) of accesses to one slice that are evenly apart.

    `at`: each row's cycle at the VXM or a plane, without the way to the slice.
    """
    for kind in np.unique(spots.kind).tolist():
        some = np.flatnonzero(spots.kind == kind)
        apart = int(np.diff(at[some]).min()) if len(some) > 1 else 1
        breaks = np.ones(len(some), np.bool_)
        breaks[1:] = (np.diff(spots.word[some]) != 1) | (np.diff(at[some]) != apart)
        for first, stop in _runs(breaks):
            row = some[first]
            queue = mem(EAST, quarter.slice(kind))
            yield queue, int(at[row]), int(spots.word[row]), stop - first, apart


def _rows(chain: Chain, one: Pass, side: int) -> Iterator[Issue]:
    """Read a pass's pixels: of one tap, or of several from a word for each."""
    job, quarter = one.job, chain.of(one.job.pair, side)
    spots = chain.read(job, one.tile, side, one.tile.taps[0])
    stream = Stream(side == EAST, CONVOLVED.feed + job.pair)
    at = one.start + np.arange(len(spots.kind))
    if len(one.tile.taps) > 1:
        yield from _gathers(chain, one, side, spots)
        return
    for queue, arrival, word, n, apart in _accesses(spots, at, quarter):
        cycle = arrival - chain.way(queue.number, side)
        yield Issue(queue, cycle, Read(address=word, stream=stream, step=1), n, apart)


def _gathers(chain: Chain, one: Pass, side: int, spots: Spots) -> Iterator[Issue]:
    """Read vectors of several pixels each, side by side, from words that come from the west."""
    job, quarter, of = one.job, chain.of(one.job.pair, side), chain.clock.of
    places, pixels = chain.places, np.arange(*one.job.pixels[side])
    dy, dx = one.tile.taps[0]
    numbers = places.number(pixels // places.width + dy, pixels % places.width + dx)
    stream = Stream(side == EAST, CONVOLVED.feed + job.pair)
    named, source = Stream(True, CONVOLVED.maps + quarter.plane), mem(WEST, MAPS + quarter.plane)
    breaks = np.ones(len(pixels), np.bool_)
    breaks[1:] = (np.diff(numbers) != 1) | (np.diff(spots.kind) != 0)
    for first, stop in _runs(breaks):
        slice_ = quarter.slice(int(spots.kind[first]))
        queue, n = mem(EAST, slice_), stop - first
        at = one.start + first - chain.way(slice_, side) + of["READ"] - of["GATHER"]
        yield Issue(queue, at, Gather(map=named, stream=stream), n)
        word = int(map_word(chain, quarter, numbers[first], job.number // 3 % 2))
        lead = of["READ"] + hops(source, queue, chain.spec)
        yield Issue(source, at - lead, Read(address=word, stream=named, step=1), n)


def _columns(chain: Chain, one: Pass) -> Iterator[Issue]:
    """Read scales and biases of a job's columns, again for each row."""
    job = one.job
    word = column_word(chain, job.number, job.block)
    steps = _named(chain, one, EAST)
    for nth, step in enumerate((steps["scale"], steps["bias"])):
        for n in range(vectors(4 * job.columns)):
            index = COLUMN_SLICES * job.pair + COLUMN_VECTORS * nth + n
            queue = mem(WEST, index)
            at = one.start + chain.drained + step.at
            at -= chain.clock.of["READ"] + hops(queue, alu(0), chain.spec)
            read = Read(address=word, stream=Stream(True, CONVOLVED.columns + index))
            yield Issue(queue, at, read, job.rows)


def _named(chain: Chain, one: Pass, side: int) -> dict[str, Step]:
    """Return the steps of a plane's ALUs by what they do."""
    names = ["sums", "scale", "bias", "result"]
    if one.job.op.residual is not None:
        names = ["residual", "scaled", "sums", "scale", "bias", "add", "result"]
    return dict(zip(names, chain.steps(one.job, side), strict=True))


def _results(chain: Chain, one: Pass, side: int) -> Iterator[Issue]:
    """Take sums to int8, and write them."""
    job, quarter = one.job, chain.of(one.job.pair, side)
    rows = job.pixels[side][1] - job.pixels[side][0]
    arrived, lanes = one.start + chain.drained, job.columns
    by_name, columns = _named(chain, one, side), _column_taps(one)
    sources: dict[str, tuple[Source, ...]] = {
        "sums": (In(_sums(one, side), "i32"),),
        "scale": (Held(by_name["sums"].alu), In(columns[0])),
        "bias": (Held(by_name["scale"].alu), In(columns[1])),
        "result": (Held(by_name["bias"].alu),),
    }
    if job.op.residual is not None:
        stream = Stream(False, CONVOLVED.residuals + side)
        sources |= {
            "residual": (In((Tap(stream),), "i8"),),
            "scaled": (
                Held(by_name["residual"].alu),
                Immediate(float(np.float32(job.op.residual))),
            ),
            "add": (Held(by_name["bias"].alu), Held(by_name["scaled"].alu)),
            "result": (Held(by_name["add"].alu),),
        }
        yield from _residual(chain, one, side, by_name["residual"])
    result = Stream(True, CONVOLVED.results + quarter.plane)
    for name, step in by_name.items():
        a, b = (*sources[name], None)[:2]
        assert a is not None
        out = (Tap(result),) if name == "result" else ()
        work = Alu(op=step.op, a=a, b=b, lanes=lanes, out=out)
        yield Issue(alu(step.alu), arrived + step.at, work, rows)
    left = one.start + chain.out(job) + np.arange(rows)
    for target, some, spots in chain.written(job, side):
        for queue, cycle, word, n, apart in _accesses(spots, left[some], target):
            at = cycle + chain.hop(queue.number)
            yield Issue(queue, at, Write(address=word, stream=result, step=1), n, apart)


def _column_taps(one: Pass) -> tuple[Group, Group]:
    """Return the streams of a job's scales and biases."""
    count, first = vectors(4 * one.job.columns), CONVOLVED.columns + COLUMN_SLICES * one.job.pair
    scales, biases = (group(Stream(True, first + COLUMN_VECTORS * n), count) for n in range(2))
    return scales, biases


def _residual(chain: Chain, one: Pass, side: int, step: Step) -> Iterator[Issue]:
    spots, quarter = chain.residual(one.job, side), chain.of(one.job.pair, side)
    at = one.start + chain.drained + step.at + np.arange(len(spots.kind))
    for queue, cycle, word, n, apart in _accesses(spots, at, quarter):
        stream = Stream(False, CONVOLVED.residuals + side)
        read = Read(address=word, stream=stream, step=1)
        yield Issue(queue, cycle - chain.to_vxm(queue.number), read, n, apart)
