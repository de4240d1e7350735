"""Links that make mistakes: which bits arrive wrong, and what the code makes of them.

Every bit of a code word (interconnect/fec.py) is wrong with `bit_error_rate`. At every bit a burst
begins with `burst_rate`: `burst_bits` bits of one word, the first and the last of them wrong, those
between as if by a coin. Errors are a pure function of seed, epoch, link, step number, transfer and
vector: not of wall time, transport or placement. A replay runs in an epoch of its own, so it meets
others. Nothing is resent, and no cycle depends on an error.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from functools import lru_cache

import numpy as np

from interconnect.errors import SpecError
from interconnect.fec import FLAGGED, VECTOR_BYTES, WORD_BITS, decode, encode, flip
from interconnect.frame import Frame, Payload

_ALL = 1 << 64  # of the draws
_EXACT = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN)  # more digits than a draw has


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSpec:
    """How often a link's bits arrive wrong. Raises SpecError for values out of range."""

    bit_error_rate: float = 0.0
    burst_rate: float = 0.0  # bursts that begin at a bit
    burst_bits: int = 2  # of each burst, from its first wrong bit to its last
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("bit_error_rate", "burst_rate"):
            rate = getattr(self, field)
            if type(rate) not in (int, float) or not 0 <= rate < 1:
                raise SpecError(field=field, wanted="a number from 0 to below 1", got=rate)
        for field, least, most in (("burst_bits", 2, WORD_BITS), ("seed", 0, _ALL - 1)):
            value = getattr(self, field)
            if type(value) is not int or not least <= value <= most:
                wanted = f"an integer from {least} to {most}"
                raise SpecError(field=field, wanted=wanted, got=value)

    @property
    def errs(self) -> bool:
        """Whether a bit is ever wrong."""
        return bool(self.bit_error_rate or self.burst_rate)

    def shares(self) -> tuple[float, float]:
        """Return which share of a link's vectors is corrected, and which one flagged.

        A burst counts as flagged, and so do two wrong bits.
        """
        bits = (*(limits(self.bit_error_rate) or (_ALL,)), _ALL)
        calm = (*limits(self.burst_rate), _ALL)[0]
        corrected = (bits[1] - bits[0]) * calm if self.bit_error_rate else 0
        return corrected / _ALL**2, (_ALL**2 - bits[0] * calm - corrected) / _ALL**2


@lru_cache(maxsize=64)
def limits(rate: float) -> tuple[int, ...]:
    """Return how draws below 2^64 become numbers of events at the bits of a word.

    A draw has as many events as there are limits that it reaches. A rate above 0 has at least one
    event in 2^64 words. Decimal, so that every machine draws the same.
    """
    if not rate:
        return ()
    out, chance = list[int](), Decimal(rate)
    with localcontext(_EXACT):
        odds = chance / (1 - chance)
        exactly = total = (1 - chance) ** WORD_BITS
        for events in range(1, WORD_BITS + 1):
            out.append(min(int(total * _ALL), _ALL - 1))
            if out[-1] == _ALL - 1:
                break
            exactly *= odds * (WORD_BITS - events + 1) / events
            total += exactly
    return tuple(out)


def wrong_bits(
    spec: ErrorSpec, epoch: int, link: int, step: int, transfer: int, vectors: int
) -> dict[int, list[int]]:
    """Return the wrong bits of a frame's words, by vector; vectors without are left out."""
    frame = struct.pack("<5Q", spec.seed, epoch, link, step, transfer)
    drawn = struct.unpack(f"<{2 * vectors}Q", hashlib.shake_128(frame).digest(16 * vectors))
    singles, bursts = limits(spec.bit_error_rate), limits(spec.burst_rate)
    if max(drawn) < min((*singles[:1], *bursts[:1]), default=_ALL):
        return {}  # as most frames are
    out = {}
    for vector, (single, burst) in enumerate(zip(drawn[::2], drawn[1::2], strict=True)):
        more = _draws(frame + struct.pack("<Q", vector))
        wrong = _single(more, bisect_right(singles, single))
        for _ in range(bisect_right(bursts, burst)):
            wrong ^= _burst(more, spec.burst_bits)
        if wrong:  # errors may cancel each other
            out[vector] = sorted(wrong)
    return out


def _draws(key: bytes) -> Iterator[int]:
    """Yield numbers below 2^64 that depend on the key alone."""
    number = 0
    while True:
        yield from struct.unpack("<8Q", hashlib.blake2b(struct.pack("<Q", number) + key).digest())
        number += 1


def _single(draws: Iterator[int], count: int) -> set[int]:
    """Return so many different bits of a word."""
    out = set[int]()
    while len(out) < count:
        out.add(next(draws) % WORD_BITS)
    return out


def _burst(draws: Iterator[int], bits: int) -> set[int]:
    """Return the wrong bits of a burst that lies in a word."""
    first = next(draws) % (WORD_BITS - bits + 1)
    inner = {first + bit for bit in range(1, bits - 1) if next(draws) & 1}
    return {first, first + bits - 1} | inner


class NoisyEnd:
    """The receiving end of a link that makes mistakes, with its counters."""

    def __init__(self, link: int, spec: ErrorSpec) -> None:
        self.link, self.spec = link, spec
        self.corrected_vectors = 0
        self.flagged_vectors = 0

    def receive(self, frame: Frame) -> Payload | None:
        """Return a frame's payload as the decoder gives it; None if a vector is flagged.

        A payload of another size than its vectors passes: the chip refuses it.
        """
        if len(frame.payload) != frame.vectors * VECTOR_BYTES:
            return frame.payload
        wrong = wrong_bits(
            self.spec, frame.epoch, self.link, frame.step, frame.transfer, frame.vectors
        )
        return self._decoded(frame.payload, wrong) if wrong else frame.payload

    def _decoded(self, payload: Payload, wrong: dict[int, list[int]]) -> Payload | None:
        """Return the payload with these bits wrong and then corrected, or None."""
        out = bytearray(payload)
        whole = np.frombuffer(out, np.uint8).reshape(-1, VECTOR_BYTES)
        places = np.array(list(wrong))
        words = whole[places]
        parity = encode(words)
        rows = np.repeat(np.arange(len(words)), [len(bits) for bits in wrong.values()])
        flip(words, parity, rows, np.array([bit for bits in wrong.values() for bit in bits]))
        found = decode(words, parity)
        flagged = int((found == FLAGGED).sum())
        self.flagged_vectors += flagged
        self.corrected_vectors += int((found >= 0).sum())
        if flagged:
            return None
        whole[places] = words
        return out
