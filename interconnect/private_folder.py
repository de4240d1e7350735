"""Folders of sockets in TMPDIR, for this user alone; none outlives its process for long.

A folder is locked as long as its maker lives. A process that is killed leaves its folder behind;
the next process of this user that makes one removes it. Only sockets and job files are removed, so
another program's folder with such a name loses nothing. If TMPDIR is too long for a socket's name,
/tmp is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path

PREFIX = "lpu-run-"
SOCKET_PATH_BYTES = 107
"""The longest path of a socket: sockaddr_un.sun_path is 108 with its terminator."""
_NAME = re.compile(PREFIX + r"[a-z0-9_]{8}")  # as tempfile makes them
_JOB = re.compile(r"job-\d+")  # rack/run/processes.py
_NAME_BYTES = 20  # left for the name of a socket in the folder
_UNLOCKED_SECONDS = 60.0  # a younger folder may only not be locked yet


class PrivateFolder:
    """A new folder; `path` is short enough for sockets in it. Close it to remove it."""

    def __init__(self) -> None:
        folder = _made(tempfile.gettempdir())
        if len(os.fsencode(folder)) > SOCKET_PATH_BYTES - _NAME_BYTES:
            os.rmdir(folder)
            folder = _made("/tmp")
        self.path = Path(folder)
        self._lock: int | None = None
        with contextlib.suppress(OSError):  # a file system without locks: then nobody sweeps there
            self._lock = _locked(folder)

    def close(self) -> None:
        """Remove the folder and what is in it; a second call does nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def sweep(parent: str) -> None:
    """Remove the folders of this user in `parent` whose makers are gone."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_left(entry)


def remove(folder: str) -> None:
    """Remove a folder with its sockets and jobs. Raises OSError, also where it has more in it.

    Several processes may do so at once.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISSOCK(mode) or (stat.S_ISREG(mode) and _JOB.fullmatch(entry.name)):
                    os.unlink(entry.path)
    os.rmdir(folder)


def _made(parent: str) -> str:
    sweep(parent)
    return tempfile.mkdtemp(prefix=PREFIX, dir=parent)  # mode 0700


def _remove_if_left(entry: os.DirEntry[str]) -> None:
    about = entry.stat(follow_symlinks=False)
    young = time.time() - about.st_mtime < _UNLOCKED_SECONDS
    if young or not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
        return
    lock = _locked(entry.path)
    try:
        remove(entry.path)
    finally:
        os.close(lock)


def _locked(folder: str) -> int:
    """Hold a folder, as long as the descriptor is open. Raises OSError where another one does."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock
