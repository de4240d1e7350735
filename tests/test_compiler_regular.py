"""Regular files are read, so much of them; nothing else is waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compiler.regular import open_regular, read_file


def test_a_file_and_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "file", 5) == read_file(tmp_path / "link", 9) == b"12345"


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="it is no regular file"):
            open_regular(path)
    with pytest.raises(OSError, match="embedded null byte"):
        open_regular(Path("a\0b"))
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")


def test_what_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(OSError, match="it has 5 bytes, more than 4"):
        read_file(tmp_path / "file", 4)
    with pytest.raises(OSError, match="it has more than 10 bytes"):  # it says that it is empty
        read_file(Path("/proc/self/status"), 10)
