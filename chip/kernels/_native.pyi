"""Types of the extension module; see chip/kernels/native/module.c.

The kernels are not listed: native.py gives them the types of `chip.kernels.twin.Kernels`, and a
test compares the names of their arguments.
"""

from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

def instruction_sets() -> list[tuple[str, int]]: ...
def synthetic_rows(isa: int, key: int, first_row: int, out: Array, /) -> None: ...
def synthetic_tiled(
    isa: int, key: int, first_row: int, rows: int, k: int, block: Array, at: int, /
) -> None: ...
def quantize_rows(isa: int, w: Array, q: Array, scales: Array, most: int, /) -> int: ...
def write_packed(isa: int, q: Array, block: Array, at: int, /) -> None: ...
def read_words(isa: int, data: Array, /) -> int: ...
