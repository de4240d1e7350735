"""What machines of a Ray cluster send each other for a token, and how long an exchange takes.

    RAY_ADDRESS=auto python benchmarks/hosts.py llama-8b --layers 3 --layout 3x2+2
    ray submit clusters/local.yaml benchmarks/hosts.py llama-8b --layers 3 --layout 3x2+2

Runs a completion with a chip per actor and prints: which chips are where; the messages and bytes of
a decode step between chips of one machine and between machines, by its schedule; what the machines'
network cards counted; the wall time of a token. Then two processes send each other frames, as the
chips of a group of two do, on one machine and on two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from compiler.ir import StepSchedule
from interconnect.frame import VECTOR_BYTES, Frame, encode, encode_control
from interconnect.zmq_transport import RunKey, ZmqTransport
from rack.errors import RackError
from rack.run.config import RunConfig
from rack.run.driver import StepMessage, step_control
from rack.run.remote import RemoteRack
from rack.run.session import Session, prepare
from rack.text.sampler import SamplingParams

ROUNDS, REPEATS, VECTORS = 300, 5, 4
WARM = 20
_PREFIX_BYTES = 2  # of a frame as a message: what it is, and its header's length
INSIDE, BETWEEN = "inside a machine", "between machines"


@ray.remote(num_cpus=0)
class Peer:
    """One of two processes that exchange frames."""

    def __init__(self, me: int, address: str, key: RunKey) -> None:
        self.me, self.other = me, 1 - me
        self.transport = ZmqTransport(me, f"tcp://{address}:*", key, senders=[1 - me])

    def where(self) -> Any:
        """Return the address of this process."""
        return self.transport.endpoint, self.transport.rings

    def meet(self, endpoint: str, rings: Any) -> str:
        """Learn the other's address; return the way that frames take there."""
        self.transport.connect({self.other: endpoint}, {} if rings is None else {self.other: rings})
        return "rings" if self.other in self.transport._outboxes else "tcp with CURVE"

    def exchange(self, rounds: int) -> float:
        """Exchange frames that often; return the seconds of a round."""
        payload = bytes(VECTORS * VECTOR_BYTES)
        started = time.perf_counter()
        for step in range(rounds):
            frame = Frame(
                epoch=1, link=self.me, step=step, transfer=step, vectors=VECTORS,
                depart_cycle=step, payload=payload,
            )  # fmt: skip
            self.transport.send(self.other, frame)
            assert self.transport.receive(30.0) is not None, "the other one is gone"
        return (time.perf_counter() - started) / rounds


@ray.remote(num_cpus=0)
def counted() -> int:
    """Return the bytes that this machine's network cards have sent."""
    with open("/proc/net/dev", encoding="ascii") as lines:
        cards = [line.split(":") for line in lines if ":" in line]
    return sum(int(numbers.split()[8]) for name, numbers in cards if name.strip() != "lo")


def on(node: str) -> Any:
    """Place an actor or a task on a machine."""
    return NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def exchange(nodes: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return how long two processes on these machines take to exchange frames, and the way."""
    key = RunKey.generate()
    peers = [
        Peer.options(scheduling_strategy=on(node)).remote(me, address, key)
        for me, (node, address) in enumerate(nodes)
    ]
    places = ray.get([peer.where.remote() for peer in peers])
    way, _ = ray.get([peers[me].meet.remote(*places[1 - me]) for me in range(2)])
    took = []
    for rounds in (WARM, *[ROUNDS] * REPEATS):
        took.append(max(ray.get([peer.exchange.remote(rounds) for peer in peers])))
    for peer in peers:
        ray.kill(peer)
    return {"way": way, "us": statistics.median(took[1:]) * 1e6}


def machines_of(rack: RemoteRack) -> dict[int, str]:
    """Return where each chip is, and the driver."""
    peers = rack._socket._peers
    return {node: endpoint.rpartition(":")[0] for node, endpoint in peers.items()}


def traffic(rack: RemoteRack, step: StepSchedule) -> dict[str, dict[str, int]]:
    """Return the messages and bytes of a step, inside machines and between them."""
    where, links = machines_of(rack), rack.compiled.network.links
    driver, found = rack.compiled.layout.chips, defaultdict(Counter)

    def count(src: int, dst: int, size: int) -> None:
        kind = INSIDE if where[src] == where[dst] else BETWEEN
        found[kind] += Counter(messages=1, bytes=size)

    for transfer in step.transfers:
        link = links[transfer.link]
        frame = Frame(
            epoch=1, link=link.id, step=step.cycles, transfer=transfer.id,
            vectors=transfer.vectors, depart_cycle=step.cycles,
        )  # fmt: skip
        header, _ = encode(frame)
        count(link.src, link.dst, _PREFIX_BYTES + len(header) + transfer.vectors * VECTOR_BYTES)
    order = StepMessage(sequence=1, step=step.name, base_cycle=1, positions=(1,), slots=(0,))
    size = 1 + len(encode_control(step_control(order)))
    for chip in range(driver):
        count(driver, chip, size)
    return {kind: dict(found[kind]) for kind in (INSIDE, BETWEEN)}


def sent_bytes(nodes: Sequence[tuple[str, str]]) -> int:
    """Return the bytes that the machines' network cards have sent so far."""
    asked = [counted.options(scheduling_strategy=on(node)).remote() for node, _ in nodes]
    return sum(ray.get(asked))


def measure(config: RunConfig, tokens: int) -> dict[str, Any]:
    """Run one completion; return what was seen."""
    prepared = prepare(config)
    compiled = prepared.compiled
    with Session(prepared) as session:
        rack = session.rack
        assert isinstance(rack, RemoteRack)
        nodes = [(n["NodeID"], n["NodeManagerAddress"]) for n in ray.nodes() if n["Alive"]]
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        prompt = prepared.tokenizer.encode("Hello")
        session.engine.generate(prompt, params).run()  # connections are made at the first frame
        sent = sent_bytes(nodes)
        done, times = session.engine.generate(prompt, params), []
        for _ in done:
            times.append(time.perf_counter())
        sent = sent_bytes(nodes) - sent
        places = machines_of(rack)
        step = next(step for step in compiled.steps.values() if step.kind.decode)
        return {
            "placed": [places[chip] for chip in range(compiled.layout.chips)],
            "cards": [[places[chip] for chip in card] for card in cards(prepared)],
            "step": step.name, "traffic": traffic(rack, step), "sent_bytes": sent,
            "steps": tokens + 1, "token_seconds": [b - a for a, b in pairwise(times)],
            "exchange": exchanges(nodes, set(places.values())),
            "token_ids": done.token_ids, "data_hash": done.data_hash,
            "prompt_cycles": done.prompt_cycles, "decode_cycles": done.decode_cycles,
        }  # fmt: skip


def exchanges(nodes: Sequence[tuple[str, str]], places: set[str]) -> dict[str, dict[str, Any]]:
    """Measure an exchange on one machine, and on two of those in use."""
    used = [node for node in nodes if f"tcp://{node[1]}" in places] or list(nodes)
    found = {INSIDE: exchange([used[0], used[0]])}
    if len(used) > 1:
        found[BETWEEN] = exchange(used[:2])
    return found


def cards(prepared: Any) -> list[range]:
    """Return the chips of each card."""
    chips, size = prepared.compiled.layout.chips, prepared.hardware.chips_per_card
    return [range(first, min(first + size, chips)) for first in range(0, chips, size)]


def report(seen: dict[str, Any]) -> str:
    """Return the figures as text."""
    lines = [f"{n:4} chips at {place}" for place, n in sorted(Counter(seen["placed"]).items())]
    for kind, sums in seen["traffic"].items():
        count, size = sums.get("messages", 0), sums.get("bytes", 0)
        lines.append(f"{kind:18}{count:6} messages, {size:9,} bytes ({seen['step']})")
    a_step, a_token = seen["sent_bytes"] // seen["steps"], statistics.median(seen["token_seconds"])
    lines.append(f"{'network cards':18}{a_step:25,} bytes sent a step")
    lines.append(f"{'a token':18}{a_token * 1e3:9.1f} ms")
    for kind, took in seen["exchange"].items():
        way = f"an exchange of {VECTORS} vectors between two, by {took['way']}"
        lines.append(f"{kind:18}{took['us']:9.0f} us {way}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--layout", default="auto")
    parser.add_argument("--max-model-len", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    os.environ.setdefault("RAY_ADDRESS", "auto")
    config = RunConfig(
        model=args.model, layers=args.layers, layout=args.layout, transport="ray",
        max_model_len=args.max_model_len,
    )  # fmt: skip
    try:
        seen = measure(config, args.tokens)
    except RackError as error:  # no Ray, or machines that run something else
        sys.exit(f"error: {error}")
    print(json.dumps(seen) if args.json else report(seen))


if __name__ == "__main__":
    main(sys.argv[1:])
