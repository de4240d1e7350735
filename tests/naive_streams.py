"""Stream registers and SRAM stepped cycle by cycle: the half of the naive machine without units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.isa.instructions import Gather, Read, Scatter, Write
from chip.isa.issue import Issue, delays
from chip.isa.operands import Group, Stream, Tap
from chip.spec import ChipSpec

Vector = NDArray[Any]
START, MIDDLE, END = range(3)  # of a cycle: what becomes visible, what is sampled, what is stored


class Refused(Exception):
    """The program asks for what the hardware cannot do."""


class NaiveStreams:
    """memory: (slice, word) -> 320 bytes; words that it lacks are poison."""

    def __init__(self, spec: ChipSpec, memory: dict[tuple[int, int], Vector]) -> None:
        self.spec, self.delays = spec, delays(spec)
        self.memory = {place: value.copy() for place, value in memory.items()}
        self.partial: dict[tuple[int, int], set[int]] = {}  # superlanes that a Scatter wrote
        self.events: defaultdict[tuple[int, int], list[Callable[[], None]]] = defaultdict(list)
        self.streams: dict[tuple[Stream, int], Vector] = {}
        self.driven: dict[tuple[Stream, int], Vector] = {}
        self.used: set[tuple[object, ...]] = set()
        self.now = 0

    def _once(self, place: tuple[object, ...]) -> None:
        if place in self.used:
            raise Refused(f"twice: {place}")
        self.used.add(place)

    def _at(self, cycle: int, phase: int, event: Callable[[], None]) -> None:
        self.events[cycle, phase].append(event)

    def _move(self) -> None:
        moved = {}
        for (stream, at), value in (self.streams | self.driven).items():
            beyond = at + (1 if stream.eastward else -1)
            if 0 <= beyond < 64:
                moved[stream, beyond] = value
        self.streams, self.driven = moved, {}

    # -- operands and results

    def _sample(self, at: int, taps: Group, cycle: int, into: list[Vector]) -> None:
        """Have the taps' vectors appended to `into`, in order, as they come."""
        into.extend(np.empty(0) for _ in taps)
        for place, (stream, beat) in enumerate(taps):

            def take(place: int = place, stream: Stream = stream) -> None:
                if (stream, at) not in self.streams:
                    raise Refused(f"nothing on {stream} at {at} in {self.now}")
                into[place] = self.streams[stream, at]

            self._at(cycle + beat, MIDDLE, take)

    def _drive(self, at: int, taps: Group, cycle: int, data: Callable[[], Vector]) -> None:
        """Put the vectors of `data`, bytes in host order, on the taps' streams."""
        for place, (stream, beat) in enumerate(taps):

            def put(place: int = place, stream: Stream = stream) -> None:
                if (stream, at) in self.driven:
                    raise Refused(f"two values on {stream} at {at}")
                flat = np.zeros(320 * len(taps), np.uint8)
                made = data().reshape(-1).view(np.uint8)[: len(flat)]
                flat[: len(made)] = made
                self.driven[stream, at] = flat[320 * place : 320 * (place + 1)]

            self._at(cycle + beat, MIDDLE, put)

    # -- memory

    def _place(self, issue: Issue, word: object) -> tuple[int, int]:
        assert isinstance(word, int)
        half = self.spec.slices // 2
        return issue.queue.hemisphere * half + issue.queue.number, word

    def _read(self, issue: Issue, read: Read, c: int, done: int, at: int) -> None:
        place = self._place(issue, read.address)
        found: list[Vector] = []

        def access() -> None:
            self._read_port(place[0], (place[1] // 4096,))
            self._whole(place)
            found.append(self.memory[place].copy())

        self._at(c, MIDDLE, access)
        self._drive(at, (Tap(read.stream),), done, lambda: found[0])

    def _read_port(self, where: int, banks: tuple[int, ...]) -> None:
        self._once(("read", where, self.now))
        for bank in banks:
            self._once(("read", where, bank, self.now))

    def _write_port(self, where: int, banks: tuple[int, ...]) -> None:
        self._once(("write", where, self.now))
        for bank in banks:
            self._once(("read", where, bank, self.now))  # nothing else has the bank

    def _whole(self, place: tuple[int, int], lane: int | None = None) -> None:
        """Refuse poison in a word, or in one superlane of it."""
        wanted = set(range(20)) if lane is None else {lane}
        if place not in self.memory or not wanted <= self.partial.get(place, wanted):
            raise Refused(f"{place} was never written")

    def _write(self, issue: Issue, write: Write, sample: int, done: int, at: int) -> None:
        place, found = self._place(issue, write.address), list[Vector]()
        self._sample(at, (Tap(write.stream),), sample, found)

        def store() -> None:
            self._write_port(place[0], (place[1] // 4096,))
            self.memory[place] = found[0].copy()
            self.partial.pop(place, None)

        self._at(done, END, store)

    def _gather(self, issue: Issue, gather: Gather, sample: int, done: int, at: int) -> None:
        words: list[Vector] = []
        found: list[Vector] = []
        where = self._place(issue, 0)[0]
        self._sample(at, (Tap(gather.map),), sample, words)

        def access() -> None:
            self._read_port(where, (0, 1))
            out = np.zeros(320, np.uint8)
            for lane, word in enumerate(_map(words[0])):
                self._whole((where, word), lane)
                part = slice(16 * lane, 16 * lane + 16)
                out[part] = self.memory[where, word][part]
            found.append(out)

        self._at(done - self.delays["READ"].d_func, MIDDLE, access)
        self._drive(at, (Tap(gather.stream),), done, lambda: found[0])

    def _scatter(self, issue: Issue, scatter: Scatter, sample: int, done: int, at: int) -> None:
        words: list[Vector] = []
        data: list[Vector] = []
        where = self._place(issue, 0)[0]
        self._sample(at, (Tap(scatter.map),), sample, words)
        self._sample(at, (Tap(scatter.stream),), sample, data)

        def store() -> None:
            self._write_port(where, (0, 1))
            for lane, word in enumerate(_map(words[0])):
                if word == 0xFFFF:
                    continue
                if word >= 8192:
                    raise Refused(f"word {word}")
                place, part = (where, word), slice(16 * lane, 16 * lane + 16)
                if place not in self.memory:
                    self.memory[place], self.partial[place] = np.zeros(320, np.uint8), set()
                self.memory[place][part] = data[0][part]
                if place in self.partial:
                    self.partial[place].add(lane)

        self._at(done, END, store)


def _map(vector: Vector) -> list[int]:
    """Each superlane's address: two bytes of its sixteen."""
    return [int(vector[16 * lane]) + 256 * int(vector[16 * lane + 1]) for lane in range(20)]
