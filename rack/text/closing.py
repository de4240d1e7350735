"""Random tokens that make a JSON text which ends.

Uniform draws among the tokens that a grammar allows keep to the grammar, but go on for ever: the
quote that ends a string is one token of a hundred thousand. So every fourth token, and every one
once there is little room left, is a single character that leads towards the end: a closing quote
or bracket where one is allowed, else what is short to finish.

Tokens are tried one by one: to ask for one takes a microsecond, for all tokens a millisecond.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from rack.text.sampler import uniforms

HASTE = 0.25
TRIES = 16

_LETTERS, _DIGITS = string.ascii_letters.encode(), string.digits.encode()
_MARKS = bytes(byte for byte in string.punctuation.encode() if byte not in b'"\\')
_REST_OF_UTF8 = bytes(range(0x80, 0xC0))
_IN_TEXT = (b'"', _MARKS, _LETTERS + _DIGITS, b" ", b"\\", _REST_OF_UTF8)
_BETWEEN = (b"}", b"]", b",", b":", _DIGITS, _LETTERS, b'"', b"-.", b"[", b"{", b"\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """What tokens spell: those that spell anything, those of single bytes, and the ends."""

    pool: Sequence[int]
    token_of: Mapping[int, int]
    eos: tuple[int, ...]
    bytes_of: Callable[[int], bytes]


class Closing:
    """The draws of one text. `allows` says whether a token may come next."""

    def __init__(self, spelling: Spelling, allows: Callable[[int], bool]) -> None:
        self._spelling, self._allows = spelling, allows
        self._in_text = self._escaped = False

    def draw(self, seed: int, position: int, *, hurry: bool) -> int | None:
        """Return a token that is allowed: the same for the same seed and position.

        None where no single character and no tried token is allowed.
        """
        haste, which, *tries = uniforms(seed, position, 2 + TRIES)
        kinds = self._kinds()
        if not hurry and haste >= HASTE:
            pool = self._spelling.pool
            drawn = (pool[int(each * len(pool))] for each in tries)
            for token in drawn:
                if self._allows(token):
                    return token
            kinds = [[*chain.from_iterable(kinds)]]
        for kind in kinds:
            found = [token for token in kind if self._allows(token)]
            if found:
                return found[int(which * len(found))]
        return None

    def _kinds(self) -> Iterable[Iterable[int]]:
        """Return the tokens that may end the text, the soonest first."""
        token_of = self._spelling.token_of
        kinds = _IN_TEXT if self._in_text else _BETWEEN
        singles = [[token_of[byte] for byte in kind if byte in token_of] for kind in kinds]
        return [self._spelling.eos, *singles]

    def follow(self, token: int) -> None:
        """Go on with a token: note whether the text is inside quotes."""
        for byte in self._spelling.bytes_of(token):
            if self._escaped:
                self._escaped = False
            elif byte == ord('"'):
                self._in_text = not self._in_text
            elif self._in_text:
                self._escaped = byte == ord("\\")
