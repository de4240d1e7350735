"""Array types of the kernels, and the length of their tiles."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from chip.spec import VECTOR_BYTES

LANES = VECTOR_BYTES
"""Values in a tile, of whatever type; a vector of the chip holds as many int8 values."""

I8: TypeAlias = NDArray[np.int8]
I32: TypeAlias = NDArray[np.int32]
I64: TypeAlias = NDArray[np.int64]
U64: TypeAlias = NDArray[np.uint64]
F16: TypeAlias = NDArray[np.float16]
F32: TypeAlias = NDArray[np.float32]
F64: TypeAlias = NDArray[np.float64]
Float: TypeAlias = NDArray[Any]
"""fp32, or fp16 (then rounded, saturating)."""
