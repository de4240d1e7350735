"""Notices about native parts that this process runs without: why, and what to do about it.

Without a compiler, or with an extension built for another Python or machine, the same bits come
from slower code (the NumPy twin, ZeroMQ). Every run says so once, so that nobody takes its speed
for the product's.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

from chip import kernels
from interconnect import rings
from rack.errors import ConfigError
from rack.system.provenance import ROOT

AGAIN = (
    "to build them, install a C compiler and Python's headers (gcc, python3-dev), then lpu-rack "
    "again: pip install --force-reinstall --no-deps FOLDER"
)
NATIVE = {
    "chip.kernels._native": "chip/kernels/native",
    "interconnect._rings": "interconnect/native",
}
"""Extension modules, and the folders of their sources."""


def native_notices(executor: str, transport: str) -> Iterator[str]:
    """Yield the notices of a run. Raises ConfigError if $LPU_KERNELS names absent kernels."""
    if executor == "timing":
        return
    try:
        name = kernels.load().name
    except ValueError as error:
        raise ConfigError(f"${kernels.ENVIRONMENT}: {error}") from None
    if kernels.BEST is None:
        why = why_missing("chip.kernels._native")
        yield f"NumPy kernels, several times slower, because native ones are {why}; {AGAIN}"
    elif name == "numpy":
        yield f"NumPy kernels, several times slower, because ${kernels.ENVIRONMENT} says so"
    if transport != "local" and sys.platform == "linux" and not rings.available():
        why = why_missing("interconnect._rings")
        yield f"frames between chips go through ZeroMQ, slower, because rings are {why}; {AGAIN}"
    yield from stale_notices()


def stale_notices() -> Iterator[str]:
    """Yield a notice for each extension that is not made of the sources that lie beside it.

    Installed packages have no sources.
    """
    for module, folder in NATIVE.items():
        sources = sorted((ROOT / folder).glob("*.[ch]"))
        try:
            built = import_module(module)
        except ImportError:
            continue
        if not sources:
            continue
        found = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
        if getattr(built, "sources", str)() != found:
            yield f"{built.__file__} is not made of the sources in {ROOT / folder}; {AGAIN}"


def why_missing(module: str) -> str:
    """Say in a few words why an extension module is not loaded."""
    parent, _, name = module.rpartition(".")
    spec = find_spec(parent)
    folder = Path(spec.origin if spec and spec.origin else ".").parent
    files = sorted(folder.glob(f"{name}.*.so")) + sorted(folder.glob(f"{name}.so"))
    fitting = [file for file in files if file.name in {name + end for end in EXTENSION_SUFFIXES}]
    if not files:
        return "not built"
    if not fitting:
        ours = EXTENSION_SUFFIXES[0]
        return f"built for another Python: {files[0]}, wanted {name}{ours}"
    try:
        import_module(module)
    except Exception as error:  # an extension may raise anything as it is loaded
        text = str(error) or type(error).__name__
        return f"not to be loaded: {text if str(fitting[0]) in text else f'{fitting[0]}: {text}'}"
    return f"of another version: {fitting[0]}"
