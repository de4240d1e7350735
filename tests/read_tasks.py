"""What the tests of reading elsewhere let a process do. It imports this: nothing heavy here."""

from __future__ import annotations

import os


def where(desk: object, body: bytes) -> int:
    return os.getpid()


def dies(desk: object, body: bytes) -> None:
    os._exit(3)


def fails(desk: object, body: bytes) -> None:
    raise KeyError("no such")


def waits(desk: object, body: bytes) -> None:
    os.read(os.pipe()[0], 1)
