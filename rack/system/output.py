"""Where a verb's `-o` goes: a file, a folder, a device, a pipe, or standard output (`-`).

A regular file appears whole or not at all: it is written beside its place and renamed into it, with
the owner and the permissions of the file that it replaces. A link is followed and stays. What is
no regular file, a descriptor (`/dev/stdout`, `/dev/fd/3`) included, is written through. What can
be seen to fail is refused by `check_file` and `check_folder` before there is anything to write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rack.errors import ConfigError
from rack.system.shell import os_line

STANDARD_OUTPUT = "-"
_NOT_THE_PLACE = (errno.EPIPE, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_CANNOT_RENAME = (errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES)
"""A file that is a mount of its own, or another's in a folder like /tmp."""


def check_file(path: str, what: str = "a file") -> None:
    """Refuse a place where `writing` must fail. Raises ConfigError."""
    with _refusals(path, what):
        descriptor = _descriptor(path)
        if descriptor is not None:
            os.fstat(descriptor)
            return
        mode = _mode(path)
        if mode is None:
            parent = os.path.dirname(os.path.realpath(path))
            if not os.path.isdir(parent):
                raise OSError(errno.ENOENT, f"no folder {parent}")
            _check_access(parent, os.W_OK | os.X_OK)
        elif stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, "a folder")
        else:
            _check_access(path, os.W_OK)


def same_file(one: str, other: str) -> bool:
    """Say whether two paths lead to one regular file, or to one place where none is yet."""
    try:
        there, also = os.stat(one), os.stat(other)
    except OSError:
        return STANDARD_OUTPUT not in (one, other) and (
            os.path.realpath(one) == os.path.realpath(other)
        )
    return stat.S_ISREG(there.st_mode) and os.path.samestat(there, also)


@contextmanager
def writing(path: str, what: str = "a file") -> Iterator[BinaryIO]:
    """Open a place to write to. Raises ConfigError; BrokenPipeError where a pipe's reader left."""
    with _refusals(path, what), _opened(path) as file:
        yield file


def check_folder(path: str) -> None:
    """Refuse a place where `writing_folder` must fail. Raises ConfigError."""
    if path == STANDARD_OUTPUT:
        raise ConfigError("-: wanted a folder to write, got standard output")
    with _refusals(path, "a folder"):
        folder = Path(os.path.realpath(path))
        mode = _mode(path)
        if mode is not None and not stat.S_ISDIR(mode):
            raise OSError(errno.ENOTDIR, "a file")
        if mode is not None and any(folder.iterdir()):
            raise ConfigError(f"{path}: wanted an empty or new folder, got one with files")
        there = next(place for place in (folder, *folder.parents) if place.exists())
        _check_access(there, os.W_OK | os.X_OK)


@contextmanager
def writing_folder(path: str) -> Iterator[Path]:
    """Make a folder, or take an empty one; what fails leaves nothing in it. Raises ConfigError."""
    check_folder(path)
    folder = Path(os.path.realpath(path))
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    with _refusals(path, "a folder", folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
        except BaseException:
            with contextlib.suppress(OSError):
                for left in folder.iterdir():
                    left.unlink()
                for place in new:
                    place.rmdir()
            raise


@contextmanager
def _refusals(path: str, what: str, folder: Path | None = None) -> Iterator[None]:
    """Turn errors of the system into one line about `path`, except those about other files."""
    if not path:
        raise ConfigError(f"{path!r}: wanted {what} to write, got an empty name")
    try:
        yield
    except OSError as error:
        about_other = folder and error.filename and not Path(error.filename).is_relative_to(folder)
        if about_other or error.errno in _NOT_THE_PLACE:
            raise
        line = os_line(OSError(error.errno, error.strerror or str(error)))
        raise ConfigError(f"{path}: wanted {what} to write, got {line}") from error


def _mode(path: str) -> int | None:
    """What a path leads to; None where nothing is there yet."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _check_access(path: str | Path, wanted: int) -> None:
    if not os.access(path, wanted):
        read_only = os.statvfs(path).f_flag & os.ST_RDONLY
        code = errno.EROFS if read_only else errno.EACCES
        raise OSError(code, os.strerror(code))


def _descriptor(path: str) -> int | None:
    """The descriptor of this process that a path stands for, itself or by links; else None.

    Renaming over such a path would put a file in place of the link, as root of /dev/stdout.
    """
    if path == STANDARD_OUTPUT:
        return sys.stdout.fileno()
    ours = re.compile(rf"/proc/{os.getpid()}(/task/\d+)?/fd")
    step = os.path.abspath(path)
    for _ in range(40):  # as many links as the system follows
        parent, name = os.path.realpath(os.path.dirname(step)), os.path.basename(step)
        if ours.fullmatch(parent) and name.isdecimal():
            return int(name)
        step = os.path.join(parent, name)
        if not os.path.islink(step):
            return None
        step = os.path.join(parent, os.readlink(step))
    return None


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    descriptor, mode = _descriptor(path), None
    if descriptor is None:
        mode = _mode(path)
    if descriptor is not None:
        sys.stdout.flush()
        with open(os.dup(descriptor), "wb") as file:
            yield file
    elif mode is None or stat.S_ISREG(mode):
        with _replaced(os.path.realpath(path)) as file:
            yield file
    else:  # never created: a device that has gone meanwhile is an error
        with open(os.open(path, os.O_WRONLY | os.O_NOCTTY), "wb") as file:
            yield file


@contextmanager
def _replaced(path: str) -> Iterator[BinaryIO]:
    """Write beside `path`, and move it there at the end."""
    before = os.stat(path) if os.path.exists(path) else None
    if before is not None:
        _check_access(path, os.W_OK)
    temporary = os.path.join(os.path.dirname(path), f".{secrets.token_hex(8)}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError:
        if before is None:
            raise
        with open(path, "wb") as file:  # the folder takes no new files, but this one can be written
            yield file
        return
    try:
        with open(descriptor, "wb") as file:
            if before is not None:
                _be_like(before, descriptor)
            yield file
        _put_in_place(temporary, path, linked=before is not None and before.st_nlink > 1)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _be_like(before: os.stat_result, descriptor: int) -> None:
    """Take over owner and permissions, as far as this user may."""
    with contextlib.suppress(OSError):
        os.fchown(descriptor, before.st_uid, before.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def _put_in_place(temporary: str, path: str, *, linked: bool) -> None:
    if not linked:  # else its other names would keep the old content
        try:
            os.replace(temporary, path)
        except OSError as error:
            if error.errno not in _CANNOT_RENAME:
                raise
        else:
            return
    shutil.copyfile(temporary, path)
