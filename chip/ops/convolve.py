"""Convolve: a convolution of one image in int8, with static scales and a ReLU.

Images are int8: q stands for (q + 127) times a scale, so the least value is zero and the rounding
to int8, which saturates, is the ReLU. Padding holds -127. Biases take up what the offset adds.
"""

from __future__ import annotations

from dataclasses import dataclass

from chip.isa.instructions import SUPERLANE
from chip.spec import VECTOR_BYTES

ZERO = -127  # what stands for zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolve:
    """`kernel` x `kernel` over height x width pixels, stride 1, as large a result.

    `residual`: an image of the result's shape is added, times this.
    """

    height: int
    width: int
    inputs: int  # channels
    outputs: int
    kernel: int
    residual: float | None = None

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the convolution, those with padding included."""
        return self.height * self.width * self.inputs * self.outputs * self.kernel**2


def cut(channels: int) -> list[tuple[int, int]]:
    """Cut channels into runs that a vector holds: (first, channels), as even as may be."""
    tiles = -(-channels // VECTOR_BYTES)
    size = whole(-(-channels // tiles))
    return [(first, min(size, channels - first)) for first in range(0, channels, size)]


def whole(channels: int) -> int:
    """Round up to whole superlanes."""
    return -(-channels // SUPERLANE) * SUPERLANE
