"""Kernels: the arithmetic of a chip. `load()` returns an implementation of `Kernels`.

NumPy is the definition and always there; native code, where it was built, gives the same bits
faster. Modules, each of which imports only those before it:

    arrays, splitmix, vmath    array types, the random hash, functions of one variable
    extension                  what native code can run here
    quant, packed, synthetic   weights: int8 and tiles; int4, two a byte; seeded values
    twin_math, twin            NumPy: `Kernels`, the contract and definition of every kernel
    native                     the same in native code
    convolve                   convolutions, which no chip of a rack runs: NumPy alone

May import: chip.
"""

from __future__ import annotations

import os

from chip.kernels.extension import BEST, INSTRUCTION_SETS, WHY_NOT_NATIVE
from chip.kernels.twin import Kernels

ENVIRONMENT = "LPU_KERNELS"
"""Environment variable that names the implementation: for tests and measurements."""

NAMES: tuple[str, ...] = ("numpy", *(f"native {name}" for name in INSTRUCTION_SETS))
"""Every implementation that runs here; "native" stands for the best native one."""

__all__ = ["BEST", "ENVIRONMENT", "INSTRUCTION_SETS", "NAMES", "WHY_NOT_NATIVE", "Kernels", "load"]


def load(prefer: str | None = None) -> Kernels:
    """Return the kernels named by `prefer`, else by $LPU_KERNELS, else the best there are.

    Raises ValueError for a name that is neither in `NAMES` nor "native", and for "native" where the
    extension was not built.
    """
    name = prefer or os.environ.get(ENVIRONMENT) or ("native" if BEST else "numpy")
    if name == "native" and BEST is None:
        raise ValueError(f"kernels: no native implementation here: {WHY_NOT_NATIVE}")
    if name not in (*NAMES, "native"):
        raise ValueError(f"kernels: unknown implementation {name!r}; wanted {', '.join(NAMES)}")
    if name == "numpy":
        return Kernels()
    from chip.kernels.native import NativeKernels  # needs the extension

    return NativeKernels(name.removeprefix("native").strip() or BEST)
