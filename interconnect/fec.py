"""The code that protects a vector on a link between chips: single bits corrected, bursts detected.

A shortened Reed-Solomon code over GF(2^10), in the field and with the roots of IEEE 802.3, clause
91, which is for lanes of 25.78125 Gb/s. A vector is exactly 256 symbols of ten bits; 6 symbols of
parity fit into the 8 bytes that a packet has beside its vector. The minimum distance is 7 symbols:
no code of this size has more. ISCA 2022 (4.5) has single-bit errors corrected in situ and multi-bit
errors detected, so correction uses no more of that distance than a single bit
(docs/decisions/0019-code-of-the-links.md):

- every single wrong bit, also of the parity, is corrected;
- every other pattern within 5 symbols is detected, with it every burst of up to 41 bits;
- an error that goes unnoticed has at least 6 wrong symbols; of those about one in 2^48 does.

Bits are numbered as they leave, each byte's highest first; the parity follows. Coding is linear:
the parity that the received vector should have, against the one that came, is the syndrome, and
each single wrong bit has a syndrome of its own. How often bits are wrong is the matter of
interconnect/bit_errors.py.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from interconnect.errors import LinkError

VECTOR_BYTES = 320
SYMBOL_BITS = 10
PARITY_SYMBOLS = 6
DATA_BITS = 8 * VECTOR_BYTES
PARITY_BITS = PARITY_SYMBOLS * SYMBOL_BITS
WORD_BITS = DATA_BITS + PARITY_BITS
PARITY_BYTES = -(-PARITY_BITS // 8)  # of a packet
DISTANCE = PARITY_SYMBOLS + 1  # of two code words, in symbols
DETECTED_SYMBOLS = DISTANCE - 2  # where a single bit is corrected
DETECTED_BURST_BITS = (DETECTED_SYMBOLS - 1) * SYMBOL_BITS + 1  # in that many symbols, wherever

FIELD = 0b100_0000_1001  # x^10 + x^3 + 1
CLEAN, FLAGGED = -1, -2  # in place of a corrected bit

U64 = NDArray[np.uint64]
U8 = NDArray[np.uint8]


def _times(a: int, b: int) -> int:
    """Multiply two elements of the field."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a >> SYMBOL_BITS:
            a ^= FIELD
        b >>= 1
    return product


def generator() -> list[int]:
    """Return the generator polynomial, (x - 1)(x - 2)(x - 4)..., highest power first."""
    out, root = [1], 1
    for _ in range(PARITY_SYMBOLS):
        scaled = [_times(one, root) for one in out]
        out = [a ^ b for a, b in zip([*out, 0], [0, *scaled], strict=True)]
        root = _times(root, 2)
    return out


def _packed(symbols: list[int]) -> int:
    packed = 0
    for symbol in symbols:
        packed = packed << SYMBOL_BITS | symbol
    return packed


@cache
def syndromes() -> U64:
    """Return the syndrome of each bit of a word: [WORD_BITS], of PARITY_BITS bits each."""
    taps = generator()[1:]
    rows: list[int] = []
    rest = taps  # x^6 divided by the generator leaves this
    for _ in range(DATA_BITS // SYMBOL_BITS):
        scaled = [[_times(one, 1 << bit) for one in rest] for bit in range(SYMBOL_BITS)]
        rows += [_packed(symbols) for symbols in scaled]  # from the vector's last bit on
        top, low = rest[0], [*rest[1:], 0]
        rest = [a ^ _times(tap, top) for a, tap in zip(low, taps, strict=True)]
    parity = [1 << bit for bit in reversed(range(PARITY_BITS))]
    out = np.array([*reversed(rows), *parity], np.uint64)
    out.setflags(write=False)
    return out


@cache
def _of_bytes() -> U64:
    """Return the parity of a byte at each place of a vector: [VECTOR_BYTES * 256]."""
    bits = syndromes()[:DATA_BITS].reshape(VECTOR_BYTES, 8)
    out = np.zeros((VECTOR_BYTES, 256), np.uint64)
    for bit in range(8):
        span = 1 << bit  # the last bit of a byte is the least
        out[:, span : 2 * span] = out[:, :span] ^ bits[:, 7 - bit, None]
    return out.reshape(-1)


@cache
def _known() -> tuple[U64, NDArray[np.int64]]:
    """Return the syndromes of single bits, sorted, and their bits."""
    order = np.argsort(syndromes())
    return syndromes()[order], order.astype(np.int64)


_PLACES = np.arange(VECTOR_BYTES, dtype=np.intp) * 256
_BLOCK = 512  # vectors at a time: their table look-ups stay in a core's cache


def encode(vectors: U8) -> U64:
    """Return the parity of each vector. Raises LinkError for what has other sizes.

    vectors: [n, 320] uint8; the parity: [n] uint64, of PARITY_BITS bits.
    """
    if vectors.dtype != np.uint8 or vectors.ndim != 2 or vectors.shape[1] != VECTOR_BYTES:
        wanted = f"[n, {VECTOR_BYTES}] uint8"
        raise LinkError(field="vectors", wanted=wanted, got=f"{vectors.shape} {vectors.dtype}")
    table, out = _of_bytes(), np.empty(len(vectors), np.uint64)
    for first in range(0, len(vectors), _BLOCK):
        places = vectors[first : first + _BLOCK] + _PLACES
        out[first : first + _BLOCK] = np.bitwise_xor.reduce(table[places], axis=1)
    return out


def decode(vectors: U8, parity: U64) -> NDArray[np.int64]:
    """Correct vectors in place; return for each the bit that was wrong, or CLEAN or FLAGGED.

    A flagged vector stays as it came. Shapes as in `encode`; the parity is not corrected.
    """
    syndrome = encode(vectors) ^ parity
    out = np.full(len(vectors), CLEAN, np.int64)
    wrong = np.flatnonzero(syndrome)
    if not len(wrong):
        return out
    known, bits = _known()
    place = np.minimum(np.searchsorted(known, syndrome[wrong]), WORD_BITS - 1)
    out[wrong] = np.where(known[place] == syndrome[wrong], bits[place], FLAGGED)
    flip(vectors, np.zeros_like(parity), wrong, out[wrong])
    return out


def flip(vectors: U8, parity: U64, rows: NDArray[np.int64], bits: NDArray[np.int64]) -> None:
    """Turn bits of words over, in place: bit `bits[i]` of word `rows[i]`. Negative ones: none."""
    data = (bits >= 0) & (bits < DATA_BITS)
    row, bit = rows[data], bits[data]
    masks = (128 >> (bit % 8)).astype(np.uint8)
    np.bitwise_xor.at(vectors, (row, bit // 8), masks)
    last = bits >= DATA_BITS
    shifts = (WORD_BITS - 1 - bits[last]).astype(np.uint64)
    np.bitwise_xor.at(parity, rows[last], np.uint64(1) << shifts)
