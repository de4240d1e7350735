"""Who holds which stream and ALU while blocks of convolutions run."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.codegen.convolutions.places import LOADED
from compiler.codegen.core.resources import (
    Owner,
    Resources,
    alus,
    crossing,
    inward,
    outward,
)


@dataclass(frozen=True, slots=True)
class Convolved:
    """Streams and ALUs of passes. Weights come from slices beyond those of all other readers.

    So a stream is `inward` or `outward` as far as those slices: sums pass them on their way in, and
    nothing else does.
    """

    sums: int = inward(0, "sums of a side's planes, four streams a plane", 8)
    columns: int = inward(8, "scales and biases of columns, from the west, eight a pair", 16)
    residuals: int = inward(24, "residuals of a side's plane, from the east", 2)
    maps: int = crossing(28, "words of pixels, from the west to the slices of a plane", 4)
    feed: int = crossing(26, "rows of a side's first plane, and of its second", 2)
    weights: int = outward(0, "weights of a side", LOADED)
    results: int = outward(16, "results of a plane", 4)
    alus: tuple[int, ...] = alus(tuple(range(16)), "sums to results")


CONVOLVED = Convolved()
CONVOLUTIONS = Resources(
    "CONVOLVE", ("passes",), (Owner("convolved", CONVOLVED, range(1)),)
)  # fmt: skip
