"""Random tokens that make a JSON text which ends.

Uniform draws among the tokens that a grammar allows keep to the grammar, but go on for ever: the
quote that ends a string is one token of a hundred thousand. So every fourth token, and every one
once there is little room left, is a single character that leads towards the end: a closing quote
or bracket where one is allowed, else what is short to finish.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from rack.sampler import uniforms

HASTE = 0.25

_MARKS = "".join(char for char in string.punctuation if char not in '"\\')
_IN_TEXT = ('"', _MARKS, string.ascii_letters + string.digits, " ")
_BETWEEN = ("}", "]", ",", ":", string.digits, string.ascii_letters, '"', "-.", "[", "{")


class Closing:
    """The draws of one text.

    `token_of` has the tokens that are a single byte, `spelled` gives any token's bytes.
    """

    def __init__(
        self, token_of: Mapping[int, int], eos: Collection[int], spelled: Callable[[int], bytes]
    ) -> None:
        self._token_of, self._eos, self._spelled = token_of, sorted(eos), spelled
        self._in_text = self._escaped = False

    def draw(
        self, allowed: NDArray[np.bool_], seed: int, position: int, *, hurry: bool
    ) -> int:
        """Return one of the tokens allowed, [vocab]: the same for the same seed and position."""
        which, haste = uniforms(seed, position, 2)
        choice = self._towards_the_end(allowed) if hurry or haste < HASTE else []
        ids = choice or np.flatnonzero(allowed)
        token = int(ids[int(which * len(ids))])
        for byte in self._spelled(token):
            self._step(byte)
        return token

    def _towards_the_end(self, allowed: NDArray[np.bool_]) -> list[int]:
        """Return the tokens of the first kind of which some are allowed, none if none is."""
        kinds = _IN_TEXT if self._in_text else _BETWEEN
        ends = [self._eos, *([self._token_of.get(ord(char), -1) for char in kind] for kind in kinds)]
        for kind in ends:
            found = [token for token in kind if token >= 0 and allowed[token]]
            if found:
                return found
        return []

    def _step(self, byte: int) -> None:
        """Follow whether the text is inside quotes."""
        if self._escaped:
            self._escaped = False
        elif byte == ord('"'):
            self._in_text = not self._in_text
        elif self._in_text:
            self._escaped = byte == ord("\\")
