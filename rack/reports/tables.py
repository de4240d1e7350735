"""Tables as text: as wide as the terminal; without a terminal, as wide as they need.

Long cells are folded, never cut. Text is shown as it is: brackets and colons have no meaning.
"""

from __future__ import annotations

import sys
from io import BytesIO, TextIOWrapper

from rich.console import Console
from rich.table import Table

_WHOLE = 10_000  # columns of a file or a pipe: no table is that wide


def columns(*names: str) -> Table:
    """Return an empty table whose cells fold."""
    made = Table()
    for name in names:
        made.add_column(name, overflow="fold")
    return made


def shown(*parts: Table | str) -> str:
    """Return tables and lines as text for standard output, without a last newline."""
    terminal, encoding = sys.stdout.isatty(), sys.stdout.encoding or "utf-8"
    text = TextIOWrapper(BytesIO(), encoding=encoding, errors="backslashreplace")
    console = Console(
        file=text, force_terminal=terminal, width=Console().width if terminal else _WHOLE,
        markup=False, highlight=False, emoji=False,
    )  # fmt: skip
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    text.seek(0)
    return text.read().rstrip("\n")
