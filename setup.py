"""The native kernels; everything else is in pyproject.toml.

Without a compiler the package is built without them and runs on the NumPy twin. Instructions above
the machine's baseline are only in functions that are chosen at run time, so no -march here; and no
option may let the compiler reorder or fuse floating-point operations.
"""

from __future__ import annotations

import os
from glob import glob

from setuptools import Extension, setup

HERE = "chip/kernels/native"
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
WARNINGS = ["-Wall", "-Wextra"]

extra = os.environ.get("LPU_KERNELS_CFLAGS", "").split()  # tools/sanitize.sh

setup(
    ext_modules=[
        Extension(
            "chip.kernels._native",
            sources=sorted(glob(f"{HERE}/*.c")),
            depends=sorted(glob(f"{HERE}/*.h")),
            include_dirs=[HERE],
            extra_compile_args=[*FLAGS, *WARNINGS, *extra],
            extra_link_args=extra,
            optional=True,
        ),
        Extension(
            "interconnect._rings",
            sources=["interconnect/native/rings.c"],
            extra_compile_args=[*FLAGS, *WARNINGS, *extra],
            extra_link_args=extra,
            optional=True,
        ),
    ]
)
