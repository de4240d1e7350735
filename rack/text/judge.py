"""Try a client's grammar in a process of its own, where it can do no harm.

llguidance bounds the work of a token, but not that of building a grammar: `multipleOf` 62615533
takes gigabytes. So each grammar is first built in a process of its own, which the kernel ends when
it takes too much CPU time or memory. That process is forked from one that waits, ready to work:
`python -m rack.text.judge FD`, started for the first grammar. It ends with its parent.

Non-goal: hiding the cost. The user of a grammar that passes builds it again, at the same cost.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NoReturn

from rack.errors import RackError, RequestError
from rack.system.ending import leave_to_parent
from rack.system.own_code import command, environment
from rack.text.constrain import Words, refusal
from rack.text.grammar import Grammar, depth

CPU_SECONDS = 2.0
WALL_SECONDS = 30.0
"""For a process that waits for a processor; the CPU time is what counts."""
MEMORY_BYTES = 128 << 20

_CANCEL = "cancel"
_BRANCHES = ("properties", "patternProperties", "enum", "anyOf", "allOf", "oneOf", "required")
_REPEATS = re.compile(r"(?<=[{,])[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What building one grammar may take."""

    cpu_seconds: float = CPU_SECONDS
    wall_seconds: float = WALL_SECONDS
    memory_bytes: int = MEMORY_BYTES


class JudgeError(RackError):
    """There is no verdict: the judging process ended, or was told to stop."""


# The part that it is about (their number: all together) and why it is refused: "" if it is not,
# None if the process was ended. Plain, because the other process's `__main__` is this module.
_Verdict = tuple[int, str | None]


class Judge:
    """Asks the process that judges, one grammar at a time; `cancel` may come from any thread."""

    def __init__(self, words: Words, limits: Limits | None = None) -> None:
        self._words, self._limits = words, limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    def check(self, grammar: Grammar) -> None:
        """Raise RequestError for a grammar that cannot be built within the limits.

        Raises JudgeError when there is no verdict, because the process ended or `cancel` was
        called.
        """
        with self._lock:
            try:
                connection = self._connection or self._start()
                connection.send(grammar)
                verdict: _Verdict | str = connection.recv()
            except (OSError, EOFError):
                self.close()
                raise JudgeError("the process that judges schemas has ended") from None
        if isinstance(verdict, str):
            raise JudgeError("stopped")
        if verdict[1] != "":
            raise _refused(grammar, verdict, self._limits)

    def cancel(self) -> None:
        """End the check that is going on, if any."""
        if self._connection is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                self._connection.send(_CANCEL)

    def close(self) -> None:
        """End the process; the next check starts another."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                command("rack.text.judge", str(theirs.fileno())),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()], env=environment(),
            )  # fmt: skip
        self._connection = Connection(ours.detach())
        self._connection.send((self._words, self._limits))
        return self._connection


def _refused(grammar: Grammar, verdict: _Verdict, limits: Limits) -> RequestError:
    number, text = verdict
    parts = grammar.parts[number : number + 1] or grammar.parts
    if text is not None:
        param = parts[0].param if len(parts) == 1 else grammar.param
        return RequestError(param=param, wanted="a JSON schema that can be kept to", got=text)
    where, keyword, weight = max(
        ((part, *found) for part in parts for found in [heaviest(json.loads(part.schema))]),
        key=lambda one: one[2],
    )
    return RequestError(
        param=where.param, got=f"one that takes more; its {keyword} may be the cause ({weight})",
        wanted=f"a JSON schema that can be compiled in {limits.cpu_seconds:g} s of CPU time and "
        f"{limits.memory_bytes >> 20} MiB",
    )  # fmt: skip


def heaviest(schema: Any) -> tuple[str, int]:
    """Return the keyword that most likely makes a schema costly, and how large it is."""
    return max(_weights(schema), key=lambda one: one[1], default=("nesting", depth(schema)))


def _weights(schema: Any) -> Iterator[tuple[str, int]]:
    left = [schema]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left += one
        if not isinstance(one, dict):
            continue
        left += one.values()
        for key, value in one.items():
            if key in _BRANCHES and isinstance(value, list | dict):
                yield key, len(value)
            elif key == "pattern" and isinstance(value, str):
                yield key, len(value) + sum(int(times[:9]) for times in _REPEATS.findall(value))
            elif key == "multipleOf" and isinstance(value, int | float):
                yield key, int(re.sub(r"[^0-9]|e.*", "", str(value))[:18] or 0)


def main() -> None:
    """Judge grammars until the parent hangs up."""
    leave_to_parent()
    connection = Connection(int(sys.argv[1]))
    words: Words
    words, limits = connection.recv()
    try:
        table: Any = words.table()
    except ValueError as error:
        table = str(error)
    with contextlib.suppress(EOFError, OSError):  # the parent has hung up
        while True:
            grammar = connection.recv()
            if grammar != _CANCEL:  # else it came too late
                connection.send(_judged(connection, table, grammar, limits))


def _judged(connection: Connection, table: Any, grammar: Grammar, limits: Limits) -> Any:
    if isinstance(table, str):
        return len(grammar.parts), table
    ours, theirs = Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        _child(theirs, table, grammar, limits)
    theirs.close()
    verdict: _Verdict = (0, None)
    try:
        while verdict[1] is None:
            if connection in wait([ours, connection]):
                return connection.recv()  # _CANCEL; raises EOFError if the parent has hung up
            try:
                verdict = ours.recv()
            except EOFError:  # the child was ended
                break
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        ours.close()
    return verdict


def _child(connection: Connection, table: Any, grammar: Grammar, limits: Limits) -> NoReturn:
    """Build a grammar within the limits; report the part at work."""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        memory = used + limits.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, limits.wall_seconds)
        begun: list[int] = []

        def begin(part: int) -> None:
            begun.append(part)
            connection.send((part, None))

        text = refusal(table, grammar, begin)
        connection.send((begun[-1], text))
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
