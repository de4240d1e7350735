"""How long an all-gather takes: processes that send each other frames, as the chips of a group do.

    python benchmarks/exchange.py [--chips 2 4 8] [--vectors 4] [--rounds 500]

Prints, per group size, the median over a few repeats of the wall time of one all-gather, and the
CPU time all processes together spent on it, through sockets alone and through shared rings. The
rest is waiting for wake-ups.
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from interconnect.frame import Frame
from interconnect.rings import available
from interconnect.transport import Transport
from interconnect.zmq_transport import ZmqTransport

REPEATS = 5
MEET_SECONDS = 60.0
_EARLY: dict[int, int] = {}  # frames of peers that are a step ahead


def gather(transport: Transport, me: int, chips: int, steps: range, payload: bytes) -> None:
    """Do an all-gather per step: send a frame to every peer, take one from every peer."""
    early = _EARLY
    for step in steps:
        for peer in range(1, chips):
            dst = (me + peer) % chips
            frame = Frame(
                epoch=1, link=me, step=step, transfer=step, vectors=len(payload) // 320,
                depart_cycle=step, payload=payload,
            )  # fmt: skip
            transport.send(dst, frame)
        have = early.pop(step, 0)
        while have < chips - 1:
            message = transport.receive(30)
            assert isinstance(message, Frame), "a peer is gone"
            if message.step == step:
                have += 1
            else:
                early[message.step] = early.get(message.step, 0) + 1


def meet(transport: ZmqTransport, folder: Path, chips: int) -> None:
    """Tell the other processes where this one is, and learn where they are."""
    written = folder / f"{transport.node}.part"
    written.write_bytes(pickle.dumps(transport.rings))
    written.rename(folder / f"{transport.node}.rings")
    until = time.monotonic() + MEET_SECONDS
    waiting = {i: folder / f"{i}.rings" for i in range(chips)}
    while missing := [i for i, path in waiting.items() if not path.exists()]:
        if time.monotonic() > until:
            raise TimeoutError(f"processes {missing} did not start within {MEET_SECONDS} s")
        time.sleep(0.01)
    found = {i: pickle.loads(path.read_bytes()) for i, path in waiting.items()}
    rings = {i: address for i, address in found.items() if address is not None}
    transport.connect({i: f"ipc://{folder}/{i}" for i in range(chips)}, rings)


def peer(folder: str, me: int, chips: int, rounds: int, vectors: int, shared: int) -> None:
    """Be one chip of the group; print wall and CPU seconds per all-gather."""
    senders = [i for i in range(chips) if i != me] if shared else []
    transport = ZmqTransport(me, f"ipc://{folder}/{me}", senders=senders)
    meet(transport, Path(folder), chips)
    payload = bytes(vectors * 320)
    gather(transport, me, chips, range(20), payload)  # connections are made at the first message
    for repeat in range(REPEATS):
        first = 20 + repeat * rounds
        started, cpu = time.perf_counter(), time.process_time()
        gather(transport, me, chips, range(first, first + rounds), payload)
        wall = (time.perf_counter() - started) / rounds
        print(wall, (time.process_time() - cpu) / rounds, flush=True)
    transport.close()


def measure(chips: int, rounds: int, vectors: int, shared: bool) -> tuple[float, float]:
    """Return the median wall seconds and the CPU seconds of all processes per all-gather."""
    with tempfile.TemporaryDirectory(prefix="lpu-") as folder:
        command = [sys.executable, __file__, "--peer", folder]
        shape = [str(n) for n in (chips, rounds, vectors, int(shared))]
        peers = [
            subprocess.Popen([*command, str(i), *shape], stdout=subprocess.PIPE, text=True)
            for i in range(chips)
        ]
        lines = [peer.communicate(timeout=300)[0].splitlines() for peer in peers]
    runs = [[tuple(map(float, line.split())) for line in text] for text in lines]
    wall = statistics.median(wall for wall, _ in runs[0])
    return wall, sum(statistics.median(cpu for _, cpu in run) for run in runs)


def main() -> None:
    """Run the command."""
    if sys.argv[1:2] == ["--peer"]:
        peer(sys.argv[2], *map(int, sys.argv[3:]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chips", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--vectors", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=500)
    args = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores, {args.vectors} vectors a frame")
    ways = [("sockets", False), *([("rings", True)] if available() else [])]
    for chips in args.chips:
        for name, shared in ways:
            wall, cpu = measure(chips, args.rounds, args.vectors, shared)
            took = f"{wall * 1e6:7.0f} us an all-gather, {cpu * 1e6:7.0f} us of CPU"
            print(f"{chips:3} chips, {name:8}{took}")


if __name__ == "__main__":
    main()
