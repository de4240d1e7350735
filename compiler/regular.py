"""Read files that somebody else has written: only regular files, and only up to a size.

A pipe would block the reader for ever, and a device has no end.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading. Raises OSError for anything else."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a zero byte in the name
        raise OSError(str(error)) from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError("it is no regular file")
    return os.fdopen(number, "rb", buffering=0)


def read_file(path: Path, most: int) -> bytes:
    """Return a regular file's bytes. Raises OSError, also for more than `most` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(f"it has {size:,} bytes, more than {most:,}")
        data = bytearray()
        while len(data) <= most and (block := file.read(most + 1 - len(data))):
            data += block
    if len(data) > most:
        raise OSError(f"it has more than {most:,} bytes")
    return bytes(data)
