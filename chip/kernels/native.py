"""Native kernels: the bits of `chip.kernels.twin` from C, with one instruction set of this machine.

The extension's functions take an instruction set's number, then the arguments of the method of
their name. They check types, ranks and shapes themselves; refusals read as the twin's.
"""

from __future__ import annotations

from functools import partial

import chip.kernels._native as _native
from chip.kernels.extension import BEST, INSTRUCTION_SETS
from chip.kernels.twin import Kernels

NOT_NATIVE = frozenset({"top_k", "rope_cache_i8", "attention_i8", "attention_f16"})
"""Methods that stay Python, as they are not on the path of a token: NumPy's top_k, and those that
only call a native one without what it can do beside."""

NATIVE = [name for name in vars(Kernels) if name[0] != "_" and callable(getattr(Kernels, name))]


class NativeKernels(Kernels):
    """The kernels with every method of the token path bound to native code."""

    def __init__(self, instruction_set: str | None = BEST) -> None:
        if instruction_set is None or instruction_set not in INSTRUCTION_SETS:
            raise ValueError(
                f"kernels: instruction set {instruction_set!r} does not run here; wanted "
                f"{', '.join(INSTRUCTION_SETS)}"
            )
        self.name = f"native {instruction_set}"
        number = INSTRUCTION_SETS[instruction_set]
        for name in NATIVE:
            if name not in NOT_NATIVE:
                setattr(self, name, partial(getattr(_native, name), number))
