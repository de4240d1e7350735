"""Starting a module of ours as a process that runs the very code this one runs.

`python -m` would look in the current folder first, whatever lies there. So that is left out, and
modules are looked for where this process looks for them, in the same order.
"""

from __future__ import annotations

import os
import sys


def command(module: str, *words: str) -> list[str]:
    """Return the command line of a module of ours."""
    return [sys.executable, "-P", "-m", module, *words]


def environment() -> dict[str, str]:
    """Return the environment that goes with it."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path}
