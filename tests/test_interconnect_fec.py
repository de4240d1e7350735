"""The links' code against its definition and its stated distance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interconnect import fec
from interconnect.errors import LinkError

RNG = np.random.default_rng(16)
SYMBOLS = fec.WORD_BITS // fec.SYMBOL_BITS


def word_of(vector: fec.U8, parity: int) -> list[int]:
    """The symbols of a code word, first to leave first."""
    bits = [*np.unpackbits(vector).tolist()]
    bits += [parity >> place & 1 for place in reversed(range(fec.PARITY_BITS))]
    return [
        int("".join(map(str, bits[place : place + 10])), 2) for place in range(0, len(bits), 10)
    ]


def powers() -> list[int]:
    """The powers of x in the field, by shift and reduction alone."""
    out = [1]
    for _ in range(1022):
        out.append(out[-1] << 1 ^ (0b100_0000_1001 if out[-1] >> 9 else 0))
    return out


def error_of(bits: Sequence[int]) -> tuple[fec.U8, fec.U64, fec.U8]:
    """A random vector and its word with these bits wrong: (received, parity, sent)."""
    sent = RNG.integers(0, 256, (1, fec.VECTOR_BYTES), np.uint8)
    received, parity = sent.copy(), fec.encode(sent)
    fec.flip(received, parity, np.zeros(len(bits), np.int64), np.array(bits, np.int64))
    return received, parity, sent


def test_code_words_are_those_of_reed_and_solomon() -> None:
    """A word as a polynomial is zero at the six roots, in a field whose elements are x's powers."""
    power = powers()
    exponent = {value: place for place, value in enumerate(power)}
    assert len(exponent) == 1023  # x^10 + x^3 + 1 is primitive
    vectors = RNG.integers(0, 256, (3, fec.VECTOR_BYTES), np.uint8)
    for vector, parity in zip(vectors, fec.encode(vectors).tolist(), strict=True):
        word = word_of(vector, parity)
        assert len(word) == SYMBOLS == 262
        for root in range(fec.PARITY_SYMBOLS):
            value = 0
            for place, symbol in enumerate(reversed(word)):
                if symbol:
                    value ^= power[(exponent[symbol] + root * place) % 1023]
            assert value == 0


def test_a_million_frames_with_single_errors() -> None:
    """Every bit of a word, parity included, is wrong hundreds of times, and always corrected."""
    count, frames = 50_000, 1_000_000
    sent = RNG.integers(0, 256, (count, fec.VECTOR_BYTES), np.uint8)
    parity, rows, seen = fec.encode(sent), np.arange(count), 0
    for first in range(0, frames, count):
        bits = (first + rows) % fec.WORD_BITS
        received, check = sent.copy(), parity.copy()
        fec.flip(received, check, rows, bits)
        seen += int((received != sent).any(axis=1).sum())
        assert (fec.decode(received, check) == bits).all()
        assert (received == sent).all()
    assert seen > 0.97 * frames  # the others had their error in the parity


@given(st.data())
def test_patterns_within_the_distance_are_never_silent(data: st.DataObject) -> None:
    """Up to d - 2 = 5 wrong symbols: a single bit is corrected, anything else is flagged."""
    places = data.draw(
        st.sets(st.integers(0, SYMBOLS - 1), min_size=1, max_size=fec.DETECTED_SYMBOLS)
    )
    bits = [
        10 * place + bit
        for place in sorted(places)
        for bit in data.draw(st.sets(st.integers(0, 9), min_size=1))
    ]
    received, parity, sent = error_of(bits)
    came = received.copy()
    (found,) = fec.decode(received, parity)
    if len(bits) == 1:
        assert found == bits[0]
        assert (received == sent).all()
    else:
        assert found == fec.FLAGGED
        assert (received == came).all()


@given(st.data())
def test_bursts_are_detected_wherever_they_begin(data: st.DataObject) -> None:
    length = data.draw(st.integers(2, fec.DETECTED_BURST_BITS))
    first = data.draw(st.integers(0, fec.WORD_BITS - length))
    inner = data.draw(st.sets(st.integers(1, length - 2))) if length > 2 else set()
    bits = [first, *(first + bit for bit in sorted(inner)), first + length - 1]
    received, parity, _ = error_of(bits)
    assert fec.decode(received, parity).tolist() == [fec.FLAGGED]


def test_no_code_word_is_nearer_than_the_distance_and_some_are_as_near() -> None:
    """One wrong symbol of a vector changes all six of the parity: seven in all, which is the most.

    So 7 wrong symbols may pass unseen, and 6 may be taken for a single bit; the tests above have
    that no fewer do.
    """
    parities = fec.syndromes()[: fec.DATA_BITS]
    for shift in range(0, fec.PARITY_BITS, fec.SYMBOL_BITS):
        assert ((parities >> np.uint64(shift)) % 1024 > 0).all()
    bit = 1234
    parity = int(parities[bit])
    changed = [fec.WORD_BITS - 1 - place for place in range(fec.PARITY_BITS) if parity >> place & 1]
    received, check, sent = error_of([bit, *changed])
    assert fec.decode(received, check).tolist() == [fec.CLEAN]  # another code word
    assert (received != sent).any()
    received, check, sent = error_of(changed)  # six symbols, a single bit from that word
    assert fec.decode(received, check).tolist() == [bit]
    assert (received != sent).any()


def test_no_error_is_no_correction() -> None:
    sent = RNG.integers(0, 256, (1000, fec.VECTOR_BYTES), np.uint8)
    received = sent.copy()
    assert (fec.decode(received, fec.encode(sent)) == fec.CLEAN).all()
    assert (received == sent).all()
    assert fec.encode(np.zeros((2, fec.VECTOR_BYTES), np.uint8)).tolist() == [0, 0]


@pytest.mark.parametrize("vectors", [np.zeros((1, 321), np.uint8), np.zeros(320, np.uint8)])
def test_what_is_no_vector_is_refused(vectors: fec.U8) -> None:
    with pytest.raises(LinkError) as caught:
        fec.encode(vectors)
    wanted = f"wanted [n, 320] uint8, got '{vectors.shape} uint8'"
    assert str(caught.value) == f"link model: vectors: {wanted}"


def test_the_parity_fits_into_a_packet() -> None:
    assert (fec.DISTANCE, fec.DETECTED_SYMBOLS, fec.DETECTED_BURST_BITS) == (7, 5, 41)
    assert (fec.PARITY_BITS, fec.PARITY_BYTES) == (60, 8)
