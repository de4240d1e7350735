"""The extension module `chip.kernels._native`: which instruction sets it can use on this machine.

The package's build makes it where there is a compiler. Nothing is imported from the extension where
`BEST` is None.
"""

from __future__ import annotations

from importlib import import_module


def _instruction_sets() -> tuple[dict[str, int], str]:
    """Return what the extension can run here, with its numbers, and why it is not there."""
    try:
        extension = import_module("chip.kernels._native")
        return dict(extension.instruction_sets()), ""
    except (ImportError, AttributeError) as error:  # AttributeError: one that is not ours
        return {}, str(error)


INSTRUCTION_SETS, WHY_NOT_NATIVE = _instruction_sets()
BEST = next((s for s in ("avx512-vnni", "avx2", "portable") if s in INSTRUCTION_SETS), None)
"""The fastest instruction set here, and the one that `chip.kernels.load` takes; None: not built."""
