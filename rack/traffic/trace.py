"""A trace's file as requests, in the order of their arrivals; read as they are asked for.

Time counts from the first arrival. Entries may be out of order by up to WINDOW places: so many are
held at a time, and no more.
"""

from __future__ import annotations

import csv
import heapq
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from compiler.errors import one_line
from compiler.files import printable, shown
from rack.errors import ConfigError
from rack.traffic.entry import NS, Entry, Fields
from rack.traffic.formats import FAILED, Counts, Format, Shape, known, recognise
from rack.traffic.lines import TraceFile, reason
from rack.traffic.request import Request

WINDOW = 1 << 14
DEFAULT_RATE = 1.0  # requests a second, where a trace has no times
Told = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A file whose format is recognised. `tokens` counts those of a text.

    Where it has no times, arrivals are drawn: a Poisson process of `rate` requests a second.
    """

    path: str
    format: Format
    tokens: Callable[[str], int]
    rate: float
    seed: int

    def requests(
        self, counts: Counts, *, scale: float = 1.0, limit: int | None = None,
        told: Told = lambda done, total: None,
    ) -> Iterator[Request]:  # fmt: skip
        """Read from the beginning; requests come `scale` times as often as recorded.

        `counts` is told what was passed over, and `told` (done, total) of the reading. A tool's
        time stays what it is. Raises TraceError.
        """
        with TraceFile(self.path) as file:
            found = self._numbered(self._in_order(file, counts), counts, scale)
            for request in islice(found, limit):
                yield request
                if limit is None:
                    told(file.offset, file.size)
                else:
                    told(request.number + 1, limit)

    def _entries(self, file: TraceFile, counts: Counts) -> Iterator[Entry]:
        rng, now = random.Random(self.seed), 0.0
        for fields in _rows(file, self.format):
            entry = self.format.read(fields, counts, self.tokens)
            if entry is None:
                continue
            if entry.arrival_ns is None:
                entry = replace(entry, arrival_ns=round(now * NS))
                now += rng.expovariate(self.rate)
            yield entry

    def _in_order(self, file: TraceFile, counts: Counts) -> Iterator[tuple[int, Entry]]:
        """Yield (arrival, entry), sorted. Raises TraceError for one too far from its place."""
        held: list[tuple[int, int, int, Entry]] = []
        newest: int | None = None
        for number, entry in enumerate(self._entries(file, counts)):
            arrival = entry.arrival_ns or 0
            if newest is not None and arrival < newest:
                late = (newest - arrival) / NS
                raise file.refuse(
                    f"entries by their arrival, to within {WINDOW:,} places",
                    f"one that came {late:,.6g} s before one in front of it",
                )
            heapq.heappush(held, (arrival, number, file.line, entry))
            if len(held) > WINDOW:
                newest, _, _, first = heapq.heappop(held)
                yield newest, first
        while held:
            arrival, _, _, entry = heapq.heappop(held)
            yield arrival, entry

    def _numbered(
        self, entries: Iterator[tuple[int, Entry]], counts: Counts, scale: float
    ) -> Iterator[Request]:
        start: int | None = None
        number = 0
        for arrival, entry in entries:
            before: int | None = None
            delay = 0  # of calls that are left out
            for call in entry.calls:
                delay += call.delay_ns
                if not call.prompt_tokens or not call.output_tokens:
                    counts[FAILED] += 1
                    continue
                start = arrival if start is None else start
                yield Request(
                    number=number, id=call.id or str(number),
                    arrival_s=(arrival - start) / NS / scale,
                    prompt_tokens=call.prompt_tokens, output_tokens=call.output_tokens,
                    session=entry.session, after=before,
                    delay_s=0.0 if before is None else delay / NS,
                )  # fmt: skip
                before, delay = number, 0
                number += 1


def open_trace(
    path: str, tokens: Callable[[str], int], *, rate: float | None = None, seed: int = 0
) -> Trace:
    """Recognise a trace. Raises ConfigError, also for a `rate` where the trace has times."""
    with TraceFile(path) as file:
        found = _recognised(file)
    if found.timed and rate is not None:
        raise ConfigError(
            f"rate: wanted none for a trace that has times ({found.name}), got {rate:g}; "
            f"--rate-scale makes it faster"
        )
    return Trace(
        path=path, format=found, tokens=tokens, rate=DEFAULT_RATE if rate is None else rate,
        seed=seed,
    )  # fmt: skip


def _recognised(file: TraceFile) -> Format:
    first = next(file.lines(), None)
    got = "an empty file"
    if first is not None:
        shape, keys = _head(file, first)
        if (found := recognise(shape, keys)) is not None:
            return found
        got = f"{shape.value} of {shown(', '.join(sorted(keys)))}"
    raise ConfigError(f"{printable(file.path)}: wanted a trace of {known()}, got {one_line(got)}")


def _head(file: TraceFile, first: str) -> tuple[Shape, set[str]]:
    """Return how a file is written, and its keys, from its first line."""
    if first.startswith("["):
        return Shape.ARRAY, {"id", "conversations"}
    if first.startswith("{"):
        return Shape.LINES, {*_object(file, first)}
    return Shape.CSV, {*_cells(file, first)}


def _rows(file: TraceFile, found: Format) -> Iterator[Fields]:
    """Yield the values of each line, or item."""
    if found.shape is Shape.ARRAY:
        yield from (Fields(item, file.refuse) for item in file.items())
        return
    lines = file.lines()
    if found.shape is Shape.LINES:
        yield from (Fields(_object(file, line), file.refuse) for line in lines)
        return
    header = _cells(file, next(lines))
    for key in found.keys:
        if header.count(key) > 1:
            raise file.refuse("each column once", f"{key} {header.count(key)} times")
    for line in lines:
        cells = _cells(file, line)
        if len(cells) != len(header):
            raise file.refuse(f"{len(header)} columns", str(len(cells)))
        yield Fields(dict(zip(header, cells, strict=True)), file.refuse)


def _cells(file: TraceFile, line: str) -> list[str]:
    if '"' not in line:
        return [cell.strip() for cell in line.split(",")]
    try:
        (cells,) = csv.reader([line], strict=True)
    except (csv.Error, ValueError) as error:
        raise file.refuse("a row of CSV", str(error)) from None
    return [cell.strip() for cell in cells]


def _object(file: TraceFile, line: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except RecursionError:
        raise file.refuse("valid JSON", "values nested too deeply") from None
    except ValueError as error:
        raise file.refuse("valid JSON", reason(error)) from None
    if not isinstance(value, dict):
        raise file.refuse("a JSON object", shown(value))
    return value
