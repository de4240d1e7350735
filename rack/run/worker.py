"""One chip in a process of its own: joins the run over ZeroMQ, loads, then moves messages.

A Ray actor and a plain process run the same loop. After the start all messages go over ZeroMQ, in
the order of rack/run/control.py. A failure is sent to the host with its fields and ends the loop;
the host decides what to do. A process that was started without a job is a spare: it waits until it
is given the job of a chip whose place it takes.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import platform
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chip.errors import ScheduleViolation
from chip.kernels import BEST, Kernels
from chip.kernels import load as load_kernels
from interconnect.faults import Fault, FaultyTransport
from interconnect.frame import Control
from interconnect.private_folder import remove
from interconnect.rings import rings_address
from interconnect.transport import Transport
from interconnect.zmq_transport import RunKey, ZmqTransport
from rack.errors import RackError
from rack.run.control import ControlKind, Conversation, Sender
from rack.run.job import ChipJob, build_chip
from rack.run.native import why_missing
from rack.run.node import ChipNode
from rack.run.pulse import beating
from rack.run.stopwatch import Stopwatch
from rack.system.adopting import forked
from rack.system.garbage import collect_once
from rack.system.provenance import ROOT, code_of_process, running_code

END_SECONDS = 10.0
TELL = "--tell="
REMOVE_TRIES = 3  # a chip's main thread may be about to bind its socket there


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A process's access to the run: its number and address, the host's two addresses, the key."""

    process: int
    bind: str
    host: int  # the host's node id; the one after is the heartbeat's
    host_endpoint: str
    pulse_endpoint: str
    key: RunKey | None
    slots: Mapping[int, int] = field(default_factory=dict)
    rings: bool = True  # frames between chips of a host through shared memory
    faults: Sequence[Fault] = ()
    kernels: str | None = None  # the driver's, by name; None for the best that are here


def error_values(chip: int, step: str, error: BaseException) -> dict[str, Any]:
    """Return an error as control values; a ScheduleViolation keeps its fields."""
    values: dict[str, Any] = {"chip": chip, "step": step, "what": str(error)}
    if isinstance(error, ScheduleViolation):
        fields = error.fields()
        values["violation"] = {
            "what": error.what,
            **{
                key: value if isinstance(value, int | str) or value is None else repr(value)
                for key, value in fields.items()
            },
        }
    else:
        values["what"] = f"{type(error).__name__}: {error}"
    return values


def rebuild_violation(values: Mapping[str, Any]) -> ScheduleViolation:
    """Return the violation that `error_values` described."""
    fields = dict(values)
    return ScheduleViolation(fields.pop("what"), **fields)


def serve(job: ChipJob | None, seat: Seat) -> None:
    """Be a process of a rack, to its end: as a chip, or first as a spare."""
    if job is None:
        job = _wait_as_spare(seat)
    while job is not None:
        job = ChipWorker(job, seat).run()


def _joined(node: int, seat: Seat, senders: Sequence[int] = ()) -> ZmqTransport:
    """Return a socket that knows the host."""
    socket = ZmqTransport(node, seat.bind, seat.key, senders)
    socket.connect({seat.host: seat.host_endpoint, seat.host + 1: seat.pulse_endpoint})
    return socket


def _wait_as_spare(seat: Seat) -> ChipJob | None:
    """Wait until a chip's place is to be taken; return its job, or None at the rack's end."""
    node = seat.process
    talk, socket = Conversation(node), _joined(node, seat)
    try:
        with beating(socket, seat.host + 1, node):
            hello = Control(ControlKind.SPARE, _introduction(node, seat, socket))
            talk.take(Sender.CHIP, hello)
            socket.send(seat.host, hello)
            message = socket.receive(None)
            assert isinstance(message, Control)  # there is no deadline, and nobody knows us
            kind = talk.take(Sender.HOST, message)
            return pickle.loads(message.values["job"]) if kind is ControlKind.TAKE else None
    except Exception as error:  # reported to the host, which starts without it, or not at all
        told = error_values(node, "start", error) | {"process": node}
        socket.send(seat.host, Control(ControlKind.ERROR, told))
        return None
    finally:
        socket.close()


def _introduction(chip: int, seat: Seat, socket: ZmqTransport) -> dict[str, Any]:
    """Return what a process says of itself: its numbers, its address, the code that it runs."""
    return {
        "chip": chip, "process": seat.process, "pid": os.getpid(), "endpoint": socket.endpoint,
        "rings": socket.rings, "where": f"{ROOT} on {platform.node()}",
        "code": running_code(kernels_like(seat.kernels)),
    }  # fmt: skip


class ChipWorker:
    """The loop of one chip."""

    def __init__(self, job: ChipJob, seat: Seat) -> None:
        self.job, self.seat = job, seat
        self._talk = Conversation(job.index)
        own_core(job.index)  # before the socket: its threads stay on the core too
        senders = sorted({link.src for link in job.links if link.dst == job.index} - {job.host})
        self.socket = _joined(job.index, seat, senders if seat.rings else ())
        transport: Transport = self.socket
        if seat.faults:
            transport = FaultyTransport(self.socket, seat.faults)
        self.node = ChipNode(
            job.links, job.index, transport, seat.slots, job.errors,
            lambda values: self._tell(ControlKind.FLAG, dict(values)),
        )  # fmt: skip
        self._step = "start"
        self._watch = Stopwatch()
        self._next: ChipJob | None = None

    def run(self) -> ChipJob | None:
        """Join, load, and serve until told to stop; return what to be next, if told so."""
        try:
            with beating(self.socket, self.job.host + 1, self.seat.process):
                self._serve()
        except Exception as error:  # reported to the host, whose run it ends
            self._tell(ControlKind.ERROR, error_values(self.job.index, self._step, error))
        finally:
            self.socket.close()
        return self._next

    def _serve(self) -> None:
        self._tell(ControlKind.HELLO, _introduction(self.job.index, self.seat, self.socket))
        name, watch = self.seat.kernels, self._watch.watch
        self.node.attach(lambda node: build_chip(self.job, node.send, name, watch, node))
        collect_once()
        self._tell(ControlKind.READY)
        while self._turn():
            pass

    def _tell(self, kind: ControlKind, values: Mapping[str, Any] | None = None) -> None:
        who = {"chip": self.job.index, "process": self.seat.process}
        message = Control(kind, {**(values or {}), **who})
        self._talk.take(Sender.CHIP, message)
        self.socket.send(self.job.host, message)

    def _turn(self) -> bool:
        started = time.perf_counter()
        message = self.node.receive()
        self._watch.waited(time.perf_counter() - started)
        if isinstance(message, Control):
            if not self._control(message):
                return False
        elif message is not None:
            self.node.handle(message)
        self.node.chip.advance()
        return True

    def _control(self, message: Control) -> bool:
        """Do what the host says; return False for stop and take. Raises ControlError."""
        kind = self._talk.take(Sender.HOST, message)
        if kind is ControlKind.TAKE:
            self._next = pickle.loads(message.values["job"])
            self.node.chip.sram.close()  # before the memory of what is next
        if kind in (ControlKind.STOP, ControlKind.TAKE):
            return False
        if kind is ControlKind.PEERS:
            peers = {int(node): at for node, at in message.values["endpoints"]}
            rings = {int(node): rings_address(at) for node, at in message.values["rings"]}
            replaced = message.values["replaced"]
            self.socket.connect(peers, rings, replaced)
            if replaced:
                self._tell(ControlKind.READY)
        elif kind is ControlKind.REPORT:
            self._report()
        else:
            if kind is ControlKind.STEP:
                self._step = message.values["step"]
            self.node.handle(message)
        return True

    def _report(self) -> None:
        """Say what this chip waits for, and how often it saturated."""
        missing = self.node.chip.missing()
        values: dict[str, Any] = {
            "saturated": self.node.chip.state.saturated, "times": self._watch.parts(),
            "corrected": [[link, end.corrected_vectors] for link, end in self.node.noisy.items()],
        }  # fmt: skip
        if missing is not None:
            values |= error_values(self.job.index, self._step, missing)
            values["order"] = self.node.chip.wait_order()
        self._tell(ControlKind.REPORT, values)


def kernels_like(name: str | None) -> Kernels:
    """Return the kernels of that name. Raises RackError if they do not run here."""
    try:
        return load_kernels(name)
    except ValueError as error:
        why = "" if BEST else f" (native ones are {why_missing('chip.kernels._native')})"
        raise RackError(
            f"{error}{why}: every chip has to run the driver's, {name}; build them in {ROOT} on "
            f"{platform.node()}, or start the driver with LPU_KERNELS set to what all machines have"
        ) from error


def own_core(chip: int) -> None:
    """Bind this thread, and the threads it starts, to one core; a group's chips to different ones.

    A message then wakes only its receiver's core. Does nothing if the system cannot do it.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[chip % len(cores)]})


def one_blas_thread() -> None:
    """Let each chip process that we start use one BLAS thread: chips are the parallelism."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def end_with_parent(folder: str) -> threading.Thread:
    """End this process, and remove the rack's folder, as soon as standard input ends.

    The parent has the other end of that pipe. So a chip notices that the parent is gone, even if it
    went before the chip's first instruction. Returns the thread that waits for it.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        for _ in range(REMOVE_TRIES):
            with contextlib.suppress(OSError):
                remove(folder)
        os._exit(1)

    thread = threading.Thread(target=watch, name="parent", daemon=True)
    thread.start()
    return thread


def _own_file(first: str, others: Sequence[str]) -> str:
    """Return the file of this process's job, after forking the processes of the others."""
    if not first.startswith(TELL):
        return first
    code_of_process()  # once for all
    collect_once()  # and what is there stays common, untouched
    return forked(others, int(first.removeprefix(TELL)))


def main(argv: Sequence[str]) -> int:
    """Entry point of a plain chip process, which ends when its parent does.

    `argv` is the job's file; or TELL with a file descriptor, and the files of several processes.
    """
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(one, signal.SIG_DFL)  # the parent sees to a quiet end
    path = Path(_own_file(argv[0], argv[1:]))
    parent = end_with_parent(str(path.parent))
    try:
        job, seat = pickle.loads(path.read_bytes())
        path.unlink()
    except FileNotFoundError:  # this chip's thread or another one's has seen the parent's end
        parent.join(END_SECONDS)  # it ends this process once the folder is gone
        return 1
    serve(job, seat)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
