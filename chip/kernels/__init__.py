"""Kernels: the arithmetic of a chip. `load()` returns an implementation of `Kernels`.

The NumPy twin is the definition and always there; native code, where it was built, gives the same
bits faster.
"""

from __future__ import annotations

import os
from importlib import import_module

from chip.kernels.interface import Kernels

ENVIRONMENT = "LPU_KERNELS"
"""Environment variable that names the implementation: for tests and measurements."""


def _instruction_sets() -> tuple[dict[str, int], str]:
    """Return what the extension can run here, with its numbers, and why it is not there."""
    try:
        extension = import_module("chip.kernels._native")
        return dict(extension.instruction_sets()), ""
    except (ImportError, AttributeError) as error:  # AttributeError: one that is not ours
        return {}, str(error)


INSTRUCTION_SETS, WHY_NOT_NATIVE = _instruction_sets()
BEST = next((s for s in ("avx512-vnni", "avx2", "portable") if s in INSTRUCTION_SETS), None)
"""The native instruction set that `load()` takes; None where the extension was not built."""

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
        from chip.kernels.twin import NumpyKernels

        return NumpyKernels()
    from chip.kernels.native import NativeKernels

    return NativeKernels(name.removeprefix("native").strip() or BEST)
