"""The shell of a verb: every outside failure is one line that names the thing and the way out."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from rack.errors import ConfigError
from rack.system.shell import line_of, put, verb

REPORT = (
    "from rack.system.shell import verb, put\n"
    "from rack.system.progress import say\n"
    "import sys\n"
    "@verb\n"
    "def main():\n"
    "    say('a notice'); put('a result'); put('\\u2502 \\udcff'); return 0\n"
    "sys.exit(main())\n"
)


CLOSED = "it is closed: give it a file, a pipe or /dev/null\n"


def shell(redirections: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a small verb in a process of its own, as a shell starts it with `redirections`."""
    command = f'"$0" -c "$1" {redirections}'
    return subprocess.run(
        ["sh", "-c", command, sys.executable, REPORT], capture_output=True, text=True,
        env={**os.environ, **environ}, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("redirections", "code", "out", "err"),
    [
        ("", 0, "a result\n│ \\udcff\n", "a notice\n"),
        ("2>&-", 0, "a result\n│ \\udcff\n", ""),
        ("2>/dev/full", 0, "a result\n│ \\udcff\n", ""),
        ("<&-", 0, "a result\n│ \\udcff\n", "a notice\n"),
        (">&-", 1, "", "a notice\nerror: standard output: Bad file descriptor; " + CLOSED),
        (
            ">/dev/full", 1, "",
            "a notice\nerror: standard output: No space left on device; free some space there or "
            "name another place\n",
        ),
        ("<&- >&- 2>&-", 1, "", ""),
    ],
)  # fmt: skip
def test_standard_streams(
    redirections: str, code: int, out: str, err: str, unbuffered: str
) -> None:
    done = shell(redirections, PYTHONUNBUFFERED=unbuffered, PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_no_character_is_an_error_in_any_locale() -> None:
    done = shell("", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "a result\n\\u2502 \\udcff\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_left(stream: str) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", REPORT], **pipes) as process:  # type: ignore[call-overload]
        getattr(process, stream).close()
        other = process.stderr if stream == "stdout" else process.stdout
        assert other.read().splitlines()[0] == (b"a notice" if stream == "stdout" else b"a result")
        assert process.wait(60) == 0


def fails(error: BaseException) -> Callable[[], int]:
    @verb
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("seed: wanted\nmore"), "error: seed: wanted more"),
        (KeyboardInterrupt(), "interrupted"),
        (
            MemoryError("Unable to allocate 8 GiB"),
            "error: out of memory: Unable to allocate 8 GiB; choose a smaller model or context, or "
            "--executor timing",
        ),
        (
            MemoryError(),
            "error: out of memory; choose a smaller model or context, or --executor timing",
        ),
        (
            RecursionError("too deep"),
            "error: nested too deeply: too deep; give a file or a text with fewer levels",
        ),
        (OSError("odd"), "error: odd"),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            "error: No usable temporary directory found in ['/tmp']; set TMPDIR to a folder that "
            "can be written",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a/b"),
            "error: a/b: Permission denied; change its permissions or name another",
        ),
        (OSError(errno.EXDEV, "Cross", "a", None, "b"), "error: a and b: Cross"),
        (FileNotFoundError(errno.ENOENT, "No such file", b"\xc3\xa9"), "error: é: No such file"),
    ],
)  # fmt: skip
def test_one_line(error: BaseException, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(error)() == 1
    assert capsys.readouterr() == ("", line + "\n")


@pytest.mark.parametrize(
    ("error", "limit", "words"),
    [
        (OSError(errno.EMFILE, "Too many"), resource.RLIMIT_NOFILE, "ulimit -n"),
        (OSError(errno.EFBIG, "Too large", "a"), resource.RLIMIT_FSIZE, "ulimit -f"),
        (OSError(errno.EAGAIN, "Temporarily"), resource.RLIMIT_NPROC, "ulimit -u"),
        (RuntimeError("can't start new thread"), resource.RLIMIT_NPROC, "ulimit -u"),
        (MemoryError(), resource.RLIMIT_AS, "ulimit -v"),
        (OSError(errno.ENOMEM, "Cannot allocate"), resource.RLIMIT_AS, "ulimit -v"),
    ],
)
def test_a_limit_is_named_with_its_value(
    error: Exception, limit: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: {limit: (4321, 4321)}[which])
    line = line_of(error)
    assert line is not None
    assert f"is 4,321: raise it ({words})" in line
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    again = line_of(error)
    assert again is not None
    assert "4,321" not in again


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), KeyError("x")])
def test_a_fault_of_ours_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        fails(error)()


def test_a_broken_pipe_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(BrokenPipeError(errno.EPIPE, "Broken pipe"))() == 0
    assert capsys.readouterr() == ("", "")


VERBS = (
    "bench", "compare", "compile", "disasm", "encode", "generate", "plan", "replay", "report",
    "serve.__main__", "sweep",
    "trace", "validate",
)  # fmt: skip


def test_every_verb_has_this_main() -> None:
    root = Path(__file__).resolve().parent.parent / "rack"
    entries = {
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in root.rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert entries == {
        *VERBS,
        "__main__",
        "text.judge",
        "run.worker",
        "serve.read_process",
    }  # the last three: not for people
    for name in VERBS:
        assert hasattr(import_module(f"rack.{name}").main, "__wrapped__"), name


def test_results_go_out_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    put("a", end="")
    put("b")
    assert capsys.readouterr() == ("ab\n", "")
