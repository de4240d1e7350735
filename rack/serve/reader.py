"""Reads requests without holding the event loop up, and with a bound on what one may take.

A short body of a model without a tokenizer is read here: that takes well under a millisecond, and
a few at worst. Everything else goes to a process of its own, one after another: tokenizers hold
the interpreter's lock for as long as a text takes, and a chat template is code from a download,
which can loop for ever or ask for any amount of memory. A process is ended when a request
takes too long, and a fresh one takes the next. Long bodies have a process of their own, so short
ones never wait for them.
"""

from __future__ import annotations

import asyncio
import pickle
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any, TypeVar

from rack.run.context import context_advice
from rack.run.session import Prepared
from rack.serve.errors import RETRY_QUEUE_SECONDS, RETRY_STARTING_SECONDS, ApiError, BusyError, busy
from rack.serve.reading import Desk, attempt
from rack.system.own_code import command, environment

READ_SECONDS = 10.0
READ_BYTES = 512 << 20
SHORT_BYTES = 64 << 10
START_SECONDS = 60.0
MOST_WAITING = 64

if TYPE_CHECKING:
    _Connection = Connection[Any, Any]
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBounds:
    """What reading one request may take, in a process of its own."""

    seconds: float = READ_SECONDS
    memory_bytes: int = READ_BYTES  # beyond what the process has before it reads
    short_bytes: int = SHORT_BYTES


class Reader:
    """Runs the functions of `reading`.

    Processes are started by `start`, or when they are first needed.
    """

    def __init__(self, desk: Desk, bounds: ReadBounds | None = None) -> None:
        self._desk, self._bounds = desk, bounds or ReadBounds()
        self._here = desk.tokenizer.kind == "bytes"
        self._short, self._long = (_Lane(desk, self._bounds) for _ in range(2))

    def start(self) -> None:
        """Start the processes that every request needs, and wait for them."""
        if not self._here:
            self._short.start()
            self._long.start()

    async def run(self, function: Callable[..., R], body: bytes, *args: Any) -> R:
        """Return function(desk, body, *args). Raises ApiError, also when it takes too much."""
        short = len(body) <= self._bounds.short_bytes
        if short and self._here:
            return attempt(function, self._desk, body, *args)
        lane = self._short if short else self._long
        found: R = await lane.run((function, body, args))
        return found

    def close(self) -> None:
        """End the processes; requests that wait to be read are refused. Harmless when repeated."""
        self._short.close()
        self._long.close()


def reader_of(prepared: Prepared, bounds: ReadBounds | None = None) -> Reader:
    """Return what reads the requests for a model."""
    desk = Desk(
        tokenizer=prepared.tokenizer, context=prepared.compiled.max_model_len,
        seed=prepared.config.seed, advice=context_advice(prepared),
    )  # fmt: skip
    return Reader(desk, bounds)


class _Lane:
    """A process that reads one request after another, and the thread that waits for it."""

    def __init__(self, desk: Desk, bounds: ReadBounds) -> None:
        self._desk, self._bounds = desk, bounds
        self._pool = ThreadPoolExecutor(1, "reader")
        self._waiting = 0
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: _Connection | None = None

    def start(self) -> None:
        """Start the process and wait until it can read."""
        self._pool.submit(self._ready).result()

    async def run(self, task: tuple[Any, ...]) -> Any:
        """Do a task of `read_process`; on the event loop. Raises ApiError."""
        if self._closed:
            raise _stopping()
        if self._waiting >= MOST_WAITING:
            what = f"{self._waiting} requests are waiting to be read"
            raise busy(BusyError(what=what, retry_seconds=RETRY_QUEUE_SECONDS))
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            found, error = await loop.run_in_executor(self._pool, self._ask, task)
        finally:
            self._waiting -= 1
        if error is not None:
            raise error
        return found

    def close(self) -> None:
        """End the process."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
        self._pool.shutdown()
        self._end()

    def _ask(self, task: tuple[Any, ...]) -> tuple[Any, Exception | None]:
        try:
            connection = self._ready()
            connection.send_bytes(pickle.dumps(task))
            if connection.poll(self._bounds.seconds):
                answer: tuple[Any, Exception | None] = pickle.loads(connection.recv_bytes())
                return answer
        except (OSError, EOFError):  # it ended: out of memory, or because of `close`
            pass
        self._end()
        if self._closed:
            return None, _stopping()
        return None, ApiError(
            413, "reading the request (its JSON, the model's chat template, the tokenizer) took "
            f"more than {self._bounds.seconds:g} seconds or {self._bounds.memory_bytes >> 20} MiB",
            code="request_too_large",
        )  # fmt: skip

    def _ready(self) -> _Connection:
        """Return the way to a process that waits for a task. Raises OSError or EOFError."""
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._closed:
            raise EOFError
        if self._connection is None:
            self._connection = self._begin()
        if self._closed:  # meanwhile
            raise EOFError
        return self._connection

    def _begin(self) -> _Connection:
        ours, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                command("rack.serve.read_process", str(theirs.fileno())),
                stdin=subprocess.DEVNULL, env=environment(), pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self._connection = ours
        ours.send_bytes(pickle.dumps((self._desk, self._bounds.memory_bytes)))
        if not ours.poll(START_SECONDS):
            raise EOFError
        ours.recv_bytes()
        return ours

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def _stopping() -> ApiError:
    return busy(BusyError(what="the server is stopping", retry_seconds=RETRY_STARTING_SECONDS))
