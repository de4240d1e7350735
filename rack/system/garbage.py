"""Keeps the garbage collector from stalling a process that holds a compiled model."""

from __future__ import annotations

import gc


def collect_once() -> None:
    """Collect, then take all that there is out of the collector's sight: it stays to the end.

    A compiled model is up to a million objects and more. The collector walks them all again and
    again, which takes up to a second, and nothing else gets on meanwhile.
    """
    gc.collect()
    gc.freeze()
