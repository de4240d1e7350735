"""Outputs: whole or not at all, through devices, pipes and links."""

from __future__ import annotations

import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rack.errors import ConfigError
from rack.system.output import check_file, check_folder, writing, writing_folder

CLOSED = "it is closed: give it a file, a pipe or /dev/null\n"


def write(path: Path | str, data: bytes = b"new") -> None:
    check_file(str(path))
    with writing(str(path)) as file:
        file.write(data)


def write_half(path: Path) -> None:
    with writing(str(path)) as file:
        file.write(b"half")
        raise KeyboardInterrupt


def refusal(path: Path | str, data: bytes = b"new") -> str:
    with pytest.raises(ConfigError) as caught:
        write(path, data)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let writes beyond `size` fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user who may not do everything; the test runs as that user."""
    folder = Path(tempfile.mkdtemp(prefix="lpu-output-"))
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.setresuid(65534, 65534, 0)
    try:
        yield folder
    finally:
        if root:
            os.setresuid(0, 0, 0)
        shutil.rmtree(folder)


# -- regular files and links


def test_a_new_file_and_one_that_is_there(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_bytes(b"longer than before")
    old.chmod(0o640)
    before = os.umask(0o027)
    try:
        write(new)
        write(old)
    finally:
        os.umask(before)
    assert (new.read_bytes(), old.read_bytes()) == (b"new", b"new")
    assert stat.S_IMODE(new.stat().st_mode) == stat.S_IMODE(old.stat().st_mode) == 0o640
    assert {path.name for path in tmp_path.iterdir()} == {"new", "old"}


def test_links_stay(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    target, link, far = tmp_path / "inner" / "target", tmp_path / "link", tmp_path / "far"
    link.symlink_to("inner/target")
    far.symlink_to(link)
    for data in (b"one", b"two"):  # a target that is not there yet, and one that is
        write(far, data)
        assert target.read_bytes() == data
    assert far.is_symlink()
    assert link.is_symlink()
    (tmp_path / "other name").hardlink_to(target)
    write(link, b"three")
    assert (tmp_path / "other name").read_bytes() == b"three"
    assert target.stat().st_nlink == 2
    assert {path.name for path in (tmp_path / "inner").iterdir()} == {"target"}


def test_a_file_with_the_longest_name(tmp_path: Path) -> None:
    write(tmp_path / ("x" * 255))
    text = refusal(tmp_path / ("x" * 256))
    assert text == "wanted a file to write, got File name too long"


@pytest.mark.parametrize("old", [None, b"old"])
def test_what_fails_leaves_things_as_they_were(old: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "out"
    if old is not None:
        path.write_bytes(old)
    with largest_file(1000):
        text = refusal(path, b"x" * 100_000)
    assert re.fullmatch(
        r"wanted a file to write, got File too large; the limit on size of a file is .*: raise it "
        r"\(ulimit -f\)", text,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if old is None else [old])


# -- devices, pipes, descriptors


def test_a_device_is_written_and_stays() -> None:
    before = os.stat("/dev/null")
    write("/dev/null")
    assert os.stat("/dev/null") == before
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    assert refusal("/dev/full") == (
        "wanted a file to write, got No space left on device; free some space there or name "
        "another place"
    )
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_link_to_a_device(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_named_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as reader:
        write(path)
        assert reader.communicate(timeout=60)[0] == b"new"
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_pipe_whose_reader_left() -> None:
    read, written = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError), writing(f"/dev/fd/{written}") as file:
        file.write(b"new")
    os.close(written)


WRITE = (
    "import sys\n"
    "from rack.system.output import check_file, writing\n"
    "from rack.system.shell import verb\n"
    "@verb\n"
    "def main():\n"
    "    check_file(sys.argv[1])\n"
    "    with writing(sys.argv[1]) as file: file.write(b'new')\n"
    "    return 0\n"
    "sys.exit(main())\n"
)


def by_shell(path: str, redirections: str) -> subprocess.CompletedProcess[str]:
    command = f'"$0" -c "$1" {path} {redirections}'
    return subprocess.run(
        ["sh", "-c", command, sys.executable, WRITE], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("path", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_by_all_its_names(path: str, tmp_path: Path) -> None:
    assert by_shell(path, "").stdout == "new"
    before = os.lstat("/dev/stdout")
    place = tmp_path / "place"
    assert by_shell(path, f"> {place}; echo more >> {place}").returncode == 0
    assert place.read_text() == "newmore\n"
    (tmp_path / "appended").write_text("old ")
    assert by_shell(path, f">> {tmp_path / 'appended'}").returncode == 0
    assert (tmp_path / "appended").read_text() == "old new"
    assert os.lstat("/dev/stdout") == before
    done = by_shell(path, ">&-")
    assert (done.returncode, done.stderr) == (
        1, f"error: {path}: wanted a file to write, got Bad file descriptor; {CLOSED}"
    )  # fmt: skip


def test_another_descriptor_and_a_link_to_one(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/fd/3")
    for path in ("/dev/fd/3", str(link)):
        done = by_shell(path, f"3> {tmp_path / 'third'}")
        assert (done.returncode, (tmp_path / "third").read_text()) == (0, "new")
    assert link.is_symlink()
    closed = by_shell("/dev/fd/9", "")
    assert closed.stderr == (
        f"error: /dev/fd/9: wanted a file to write, got Bad file descriptor; {CLOSED}"
    )


# -- places that cannot be


def test_places_that_cannot_be(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "wanted a file to write, got a folder"
    nowhere = tmp_path / "no" / "file"
    assert refusal(nowhere) == f"wanted a file to write, got no folder {nowhere.parent}"
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(tmp_path / "loop").startswith("wanted a file to write, got Too many levels")
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file" / "x") == "wanted a file to write, got Not a directory"
    with pytest.raises(ConfigError, match=r"^'': wanted a picture to write, got an empty name"):
        check_file("", "a picture")


def test_what_this_user_may_not_write(unprivileged: Path) -> None:
    folder = unprivileged
    path = folder / "read-only"
    path.write_bytes(b"old")
    path.chmod(0o444)
    denied = "wanted a file to write, got Permission denied; change its permissions or name another"
    assert refusal(path) == denied
    with pytest.raises(ConfigError, match="Permission denied"), writing(str(path)):
        pass
    path.chmod(0o644)
    folder.chmod(0o555)
    write(path)  # there is no room beside it, but it can be written itself
    assert path.read_bytes() == b"new"
    assert refusal(folder / "another") == denied
    with pytest.raises(ConfigError, match="Permission denied"), writing(str(folder / "another")):
        pass
    folder.chmod(0o755)
    assert [p.name for p in folder.iterdir()] == ["read-only"]
    with pytest.raises(ConfigError, match="Permission denied"):
        check_folder("/proc/1/lpu")


def test_a_read_only_file_system() -> None:
    places = ("/proc/sys/kernel", "/sys/kernel")
    place = next((p for p in places if os.statvfs(p).f_flag & os.ST_RDONLY), None)
    if place is None:
        pytest.skip("none here")
    assert refusal(f"{place}/lpu") == (
        "wanted a file to write, got Read-only file system; name another place"
    )


# -- folders


def test_a_folder_is_made_and_a_link_to_one_is_followed(tmp_path: Path) -> None:
    with writing_folder(str(tmp_path / "a" / "b")) as folder:
        (folder / "x").write_text("new")
    (tmp_path / "link").symlink_to("target")
    with writing_folder(str(tmp_path / "link")) as folder:
        (folder / "x").write_text("new")
    for name in ("a/b/x", "target/x"):
        assert (tmp_path / name).read_text() == "new"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_fails_is_as_it_was(there: bool, tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    if there:
        place.mkdir(parents=True)
    before = set(tmp_path.rglob("*"))

    def fill() -> None:
        with largest_file(10), writing_folder(str(place)) as folder:
            (folder / "x").write_text("1234567890")
            (folder / "y").write_text("1234567890+")

    with pytest.raises(ConfigError, match=f"{place}: wanted a folder to write, got File too large"):
        fill()
    assert set(tmp_path.rglob("*")) == before


def test_an_error_about_another_file_is_not_the_folder_s(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing_folder(str(tmp_path / "a")):
        (tmp_path / "weights").read_text()
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, why in (
        ("-", "wanted a folder to write, got standard output"),
        (str(tmp_path), "wanted an empty or new folder, got one with files"),
        (str(tmp_path / "file"), "wanted a folder to write, got a file"),
        (str(tmp_path / "file" / "x"), "wanted a folder to write, got Not a directory"),
        ("/dev/null", "wanted a folder to write, got a file"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_folder(path)
        assert str(caught.value) == f"{path}: {why}"
