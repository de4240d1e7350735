"""The native kernels; everything else is in pyproject.toml.

Without a compiler the package is built without them and runs on the NumPy twin; nothing of an older
build is left then. Instructions above the machine's baseline are only in functions that are chosen
at run time, so no -march here; and no option may let the compiler reorder or fuse floating-point
operations.
"""

from __future__ import annotations

import hashlib
import os
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
WARNINGS = ["-Wall", "-Wextra"]

extra = os.environ.get("LPU_KERNELS_CFLAGS", "").split()  # tools/sanitize.sh


def digest(folder: str) -> str:
    """Return what an extension says it is made of: rack/run/native.py compares it."""
    found = hashlib.sha256()
    for path in sorted(glob(f"{folder}/*.[ch]")):
        found.update(Path(path).read_bytes())
    return found.hexdigest()


def extension(name: str, folder: str) -> Extension:
    """Describe an extension that the package can do without."""
    return Extension(
        name,
        sources=sorted(glob(f"{folder}/*.c")),
        depends=sorted(glob(f"{folder}/*.h")),
        include_dirs=[folder],
        define_macros=[("LPU_SOURCES", f'"{digest(folder)}"')],
        extra_compile_args=[*FLAGS, *WARNINGS, *extra],
        extra_link_args=extra,
        optional=True,
    )


class BuildOrRemove(build_ext):
    """Builds an extension; if that fails, an older one must not run in its place."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception:
            for built in (self.get_ext_filename(ext.name), self.get_ext_fullpath(ext.name)):
                Path(built).unlink(missing_ok=True)
            raise


setup(
    cmdclass={"build_ext": BuildOrRemove},
    ext_modules=[
        extension("chip.kernels._native", "chip/kernels/native"),
        extension("interconnect._rings", "interconnect/native"),
    ],
)
