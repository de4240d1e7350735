"""splitmix64 on arrays: the hash of `logit_hash` and the generator of synthetic weights.

Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. Native code
has it in native/splitmix.h. interconnect/clock.py has it as well, because neither package may
import the other; a test holds the three together.
"""

from __future__ import annotations

import numpy as np

from chip.kernels.arrays import U64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(z: U64) -> None:
    """Apply the finaliser to each number, in place."""
    t = z >> np.uint64(30)
    z ^= t
    z *= _MIX_1
    np.right_shift(z, np.uint64(27), out=t)
    z ^= t
    z *= _MIX_2
    np.right_shift(z, np.uint64(31), out=t)
    z ^= t


def draw(key: np.uint64, index: U64) -> None:
    """Replace each index, in place, by that output of the stream `key`."""
    index *= _GOLDEN
    index += key
    mix(index)
