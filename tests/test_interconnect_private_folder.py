"""Folders of sockets: held while their maker lives, removed by the next one after that."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from interconnect.private_folder import PREFIX, SOCKET_PATH_BYTES, PrivateFolder, remove

LONG_AGO = 1_000_000_000


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def left(tmp_path: Path, name: str = PREFIX + "abcd_123") -> Path:
    """A folder that a process left long ago."""
    folder = tmp_path / name
    folder.mkdir(mode=0o700)
    put_socket(folder / "3")
    (folder / "job-12").write_bytes(b"")
    os.utime(folder, (LONG_AGO, LONG_AGO))
    return folder


def test_a_folder_is_private_and_goes_with_its_contents(tmp_path: Path) -> None:
    folder = PrivateFolder()
    assert folder.path.parent == tmp_path
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    put_socket(folder.path / "0")
    folder.close()
    folder.close()
    assert list(tmp_path.iterdir()) == []


def test_a_deep_place_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * SOCKET_PATH_BYTES)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    folder = PrivateFolder()
    assert folder.path.parent == Path("/tmp")
    assert list(deep.iterdir()) == []
    folder.close()
    assert not folder.path.exists()


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        f"import os, tempfile; tempfile.tempdir = {str(tmp_path)!r}\n"
        "from interconnect.private_folder import PrivateFolder\n"
        "print(PrivateFolder().path, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    killed = Path(done.stdout.strip())
    assert killed.parent == tmp_path, done.stderr
    young = PrivateFolder()
    assert killed.exists()  # it could be one that is only being made
    os.utime(killed, (LONG_AGO, LONG_AGO))
    PrivateFolder().close()
    assert not killed.exists()
    young.close()


def test_a_folder_that_is_in_use_stays(tmp_path: Path) -> None:
    held = PrivateFolder()
    put_socket(held.path / "0")
    os.utime(held.path, (LONG_AGO, LONG_AGO))
    PrivateFolder().close()
    assert (held.path / "0").exists()
    held.close()


def test_what_is_not_a_rack_s_loses_nothing(tmp_path: Path) -> None:
    checkout = left(tmp_path, "lpu-rack")
    similar = left(tmp_path)
    (similar / "notes.txt").write_text("mine")
    os.utime(similar, (LONG_AGO, LONG_AGO))
    (tmp_path / (PREFIX + "linkto12")).symlink_to(checkout)
    PrivateFolder().close()
    assert sorted(path.name for path in checkout.iterdir()) == ["3", "job-12"]
    assert (similar / "notes.txt").read_text() == "mine"
    with pytest.raises(OSError, match="not empty"):
        remove(str(similar))
    gone = left(tmp_path, PREFIX + "abcd_124")
    PrivateFolder().close()
    assert not gone.exists()
