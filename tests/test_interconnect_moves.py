"""Native moves: frames that are as the program has them are taken, all others are left alone."""

from __future__ import annotations

import mmap
import os
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transport_suite import WAIT_S

from interconnect import rings
from interconnect.errors import TransportClosedError
from interconnect.frame import Control, Frame, decode, encode
from interconnect.link import LinkModel
from interconnect.rings import (
    PAGE,
    PATIENCE,
    SELDOM,
    WORDS,
    Inbox,
    Outbox,
    Ports,
    Receiving,
    Sending,
)
from interconnect.zmq_transport import ZmqTransport

pytestmark = pytest.mark.skipif(not rings.available(), reason="needs the native part and Linux")

SLOT, LATENCY = 24, 216
SLEEPING = 128  # where the first page of a memory says that its reader sleeps
SEND = Sending(node=1, link=5, transfer=7, vectors=2, address=320, cycle=100, row=0)
RECEIVE = Receiving(
    node=0, link=5, transfer=7, vectors=2, address=640, first_cycle=100 + SLOT + LATENCY,
    last_cycle=100 + 2 * SLOT + LATENCY, window_cycles=0, word=0, slot_cycles=SLOT,
    latency_cycles=LATENCY,
)  # fmt: skip
EPOCH, STEP, BASE = 3, 9, 5000
FRAME = Frame(
    epoch=EPOCH, link=5, step=STEP, transfer=7, vectors=2, depart_cycle=BASE + 100,
    payload=bytes(range(160)) * 4,
)  # fmt: skip


class Pair:
    """Node 0, which sends, and node 1, which receives: rings, ports, memories, a link's words."""

    def __init__(self, capacity: int = PAGE) -> None:
        self.inbox = Inbox([0, 2], capacity)
        self.outbox = Outbox(0, self.inbox.address)
        self.sender, self.receiver = Ports(None), Ports(self.inbox)
        self.sender.join(1, self.outbox)
        self.memories = [bytearray(os.urandom(40 * 320)) for _ in range(2)]
        self.words = array("Q", [0] * WORDS)

    def send(self, *moves: Sending, shares: list[int] | None = None, base: int = BASE) -> int:
        return self._run(self.sender, 0, moves, base, shares or [0])[0]

    def receive(self, *moves: Receiving, base: int = BASE) -> tuple[int, int | None]:
        return self._run(self.receiver, 1, moves, base, [0])

    def _run(self, ports: Ports, which: int, moves: Any, base: int, shares: list[int]) -> Any:
        bound = ports.moves(memoryview(self.memories[which]), self.words, moves)
        return bound.run(0, len(moves), EPOCH, STEP, base, shares)

    def put(self, frame: Frame, header: bytes | None = None) -> None:
        """Put a frame as the native sender forms it, or with another header."""
        numbers = [frame.version, frame.flags, frame.epoch, frame.link, frame.step, frame.transfer,
                   frame.vectors, frame.depart_cycle, frame.check]  # fmt: skip
        if header is None:
            header = b"\x99" + b"".join(b"\xcf" + number.to_bytes(8) for number in numbers)
        assert self.outbox.put([b"F", len(header).to_bytes(), header, frame.payload])

    def taken(self) -> Frame | None:
        """Return the frame that Python finds in the ring."""
        got = self.inbox.take_of(0)
        if got is None or got[1] is None:
            return None
        data = got[1]
        return decode(data[2 : 2 + data[1]], data[2 + data[1] :])


@contextmanager
def pair(capacity: int = PAGE) -> Iterator[Pair]:
    made = Pair(capacity)
    try:
        yield made
    finally:
        for ports in (made.sender, made.receiver):
            ports.close()
        made.outbox.close()
        made.inbox.close()


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 8)), min_size=1, max_size=30),
    st.integers(0, 10**12),
)
def test_links_are_as_link_model_has_them(
    slot: int, latency: int, transfers: list[tuple[int, int]], base: int
) -> None:
    """Cycle for cycle, with the payloads whole, round the end of a small ring and back."""
    model = LinkModel(slot, latency)
    with pair(2 * PAGE) as wire:
        for number, (depart, vectors) in enumerate(transfers):
            sent = replace(SEND, transfer=number, vectors=vectors, cycle=depart)
            assert wire.send(sent, base=base) == 1
            came = model.carry(base + depart, vectors)
            first, last = came.first_cycle - base, came.last_cycle - base
            taken = replace(
                RECEIVE, transfer=number, vectors=vectors, first_cycle=first, last_cycle=last,
                slot_cycles=slot, latency_cycles=latency,
            )  # fmt: skip
            before = list(wire.words)
            for wrong in (
                replace(taken, first_cycle=first - 1), replace(taken, first_cycle=first + 1),
                replace(taken, last_cycle=last - 1), replace(taken, last_cycle=last + 1),
            ):  # fmt: skip
                assert wire.receive(wrong, base=base) == (0, None)
                assert list(wire.words) == before
            assert wire.receive(taken, base=base) == (1, None)
            assert list(wire.words) == [model.busy_until, model.carried_vectors, STEP, number]
            size = vectors * 320
            assert wire.memories[1][640 : 640 + size] == wire.memories[0][320 : 320 + size]


@given(st.integers(0, 40), st.integers(0, 60))
def test_arrival_within_the_window(early: int, window: int) -> None:
    cycles = {"first_cycle": RECEIVE.first_cycle + early, "last_cycle": RECEIVE.last_cycle + early}
    with pair() as wire:
        wire.put(FRAME)
        taken = wire.receive(replace(RECEIVE, window_cycles=window, **cycles))
        assert taken == (int(early <= window), None)


def test_python_and_native_write_the_same_frames() -> None:
    """A frame of either is read by the other's reader."""
    with pair() as wire:
        assert wire.send(replace(SEND, row=1), shares=[4, 2**64 - 1]) == 1
        payload = bytes(wire.memories[0][320:960])
        assert wire.taken() == replace(FRAME, check=2**64 - 1, payload=payload)
        assert wire.send(replace(SEND, row=2), shares=[4, 5]) == 1  # a row that is not there
        assert wire.taken() == replace(FRAME, payload=payload)
        wire.put(FRAME)
        assert wire.receive(RECEIVE) == (1, None)
        assert wire.memories[1][640:1280] == FRAME.payload


OTHERS = {
    "version": b"\x99" + b"\xcf\0\0\0\0\0\0\0\2" * 9,
    "no array": b"\x98" + b"\xcf\0\0\0\0\0\0\0\2" * 9,
    "small numbers": encode(FRAME)[0],
}
CHANGES: list[dict[str, Any]] = [
    {"flags": 1}, {"epoch": EPOCH - 1}, {"epoch": EPOCH + 1}, {"link": 6}, {"step": STEP + 1},
    {"transfer": 8}, {"vectors": 1}, {"check": 1}, {"depart_cycle": FRAME.depart_cycle + 1},
    {"depart_cycle": 0}, {"depart_cycle": 2**64 - 1}, {"payload": bytes(639)},
    {"payload": bytes(641)}, {"payload": b""},
]  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_another_frame_is_left_for_python(changes: dict[str, Any]) -> None:
    with pair() as wire:
        before = bytes(wire.memories[1])
        wire.put(replace(FRAME, **changes))
        assert wire.receive(RECEIVE) == (0, None)
        assert wire.memories[1] == before
        assert list(wire.words) == [0] * WORDS
        assert wire.taken() == replace(FRAME, **changes)


@pytest.mark.parametrize("header", OTHERS.values(), ids=OTHERS)
def test_a_header_of_another_form_is_left_for_python(header: bytes) -> None:
    with pair() as wire:
        wire.put(FRAME, header)
        assert wire.receive(RECEIVE) == (0, None)
        got = wire.inbox.take_of(0)
        assert got == (0, b"F" + len(header).to_bytes() + header + FRAME.payload)


def test_what_is_queued_behind_a_full_link_comes_late() -> None:
    with pair() as wire:
        wire.words[0] = BASE + 100 + SLOT  # the link is busy for one slot more
        wire.put(FRAME)
        assert wire.receive(RECEIVE) == (0, None)
        later = {"first_cycle": RECEIVE.first_cycle + SLOT, "last_cycle": RECEIVE.last_cycle + SLOT}
        wire.words[0] = 2**63
        assert wire.receive(replace(RECEIVE, **later)) == (0, None)  # for Python's integers
        wire.words[0] = BASE + 100 + SLOT
        assert wire.receive(replace(RECEIVE, **later)) == (1, None)


def test_an_empty_ring_and_a_mark() -> None:
    with pair() as wire:
        assert wire.receive(RECEIVE) == (0, 0)
        wire.put(FRAME)
        assert wire.receive(RECEIVE, RECEIVE) == (1, 0)
        assert wire.outbox.put(None)
        assert wire.receive(RECEIVE) == (0, None)
        assert wire.inbox.take_of(0) == (0, None)
        assert wire.inbox.take_of(0) is None
        assert wire.inbox.take_of(2) is None


def test_a_full_ring_stops_a_send_and_keeps_room_for_a_mark() -> None:
    with pair() as wire:
        sends = [SEND] * 8
        assert wire.send(*sends) == PAGE // (4 + 84 + 640)
        while wire.outbox.put([b"four"]):
            pass
        assert wire.outbox.put(None)


def test_a_node_without_a_ring_is_left_for_python() -> None:
    with pair() as wire:
        assert wire.send(replace(SEND, node=2)) == 0
        assert wire.send(replace(SEND, node=70_000)) == 0
        wire.sender.leave(1)
        wire.sender.leave(1)
        wire.sender.leave(99)
        assert wire.send(SEND) == 0
        wire.sender.join(1, wire.outbox)
        wire.sender.join(1, wire.outbox)
        assert wire.send(SEND) == 1
        bound = wire.receiver.moves(memoryview(bytearray(1280)), wire.words, [RECEIVE])
        wire.receiver.close()
        assert bound.run(0, 1, EPOCH, STEP, BASE, [0]) == (0, None)


BAD_SENDS: list[dict[str, Any]] = [
    {"vectors": 0}, {"vectors": 41}, {"vectors": 2**62}, {"address": 39 * 320}, {"cycle": -1},
    {"cycle": 2**62},
]  # fmt: skip
BAD_RECEIVES: list[dict[str, Any]] = [
    {"word": 1}, {"first_cycle": -1}, {"last_cycle": 2**62}, {"window_cycles": -1},
]  # fmt: skip


@pytest.mark.parametrize("changes", BAD_SENDS + BAD_RECEIVES, ids=str)
def test_moves_that_cannot_be(changes: dict[str, Any]) -> None:
    with pair() as wire:
        move = replace(SEND if changes in BAD_SENDS else RECEIVE, **changes)
        with pytest.raises(ValueError, match="moves: wanted vectors in memory, cycles to 2"):
            wire.receiver.moves(memoryview(wire.memories[0]), wire.words, [move])
        with pytest.raises(ValueError, match="is not in list"):
            wire.sender.moves(memoryview(wire.memories[0]), wire.words, [RECEIVE])


def test_calls_that_cannot_be() -> None:
    native = rings._rings
    with pytest.raises(ValueError, match="a memory that was laid out"):
        native.Ports(mmap.mmap(-1, PAGE))
    with pair() as wire:
        memory = wire.outbox.memory
        with pytest.raises(ValueError, match="wanted a node below 1048576, got 4000000000"):
            wire.sender.join(4_000_000_000, wire.outbox)
        with pytest.raises(ValueError, match="wanted one of 2 rings, got 2"):
            native.Ports(None).join(1, memory, 2, 0)
        bound = wire.sender.moves(memoryview(wire.memories[0]), wire.words, [SEND])
        for numbers in ((-1, 1, 0, 0, 0), (0, 2, 0, 0, 0), (0, 1, 0, 0, -1), (0, 1, 0, 0, 2**62)):
            with pytest.raises(ValueError, match="run: wanted moves 0 to 1 and a base to 2"):
                bound.run(*numbers, [0])
        with pytest.raises(TypeError, match="run: wanted five numbers and a list"):
            bound.run(0, 1, 0, 0, 0, 0)  # type: ignore[arg-type]
        with pytest.raises(OverflowError):
            bound.run(0, 1, -1, 0, 0, [0])
        with pytest.raises(TypeError):
            native.Moves(1, memory, wire.words, [])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="moves: wanted numbers"):
            native.Moves(native.Ports(None), memory, wire.words, [(1,)])
        with pytest.raises(BufferError):
            native.Moves(native.Ports(None), b"fixed", wire.words, [])  # type: ignore[arg-type]


def test_a_reader_is_woken_by_whom_it_expects() -> None:
    with pair() as wire:
        inbox, other = wire.inbox, Outbox(2, wire.inbox.address)
        readable, written = os.pipe()
        assert other.put([bytes(100)])
        assert not inbox.holds(0)
        assert inbox.wait_for(2, readable) == (True, False)
        assert inbox.wait_for(0, readable, 0) == (False, False)
        os.write(written, b"x")
        assert inbox.wait_for(0, readable) == (False, True)
        os.read(readable, 1)
        for do in (lambda: wire.send(SEND), lambda: other.put([bytes(PAGE // 2)])):
            ended: list[tuple[bool, bool]] = []
            sleeper = threading.Thread(target=lambda: ended.append(inbox.wait_for(0, readable)))  # noqa: B023
            sleeper.start()
            while not inbox.memory[SLEEPING]:
                pass
            assert other.put([b"of another sender: it sleeps on"])
            assert not ended
            assert inbox.memory[SLEEPING]
            assert do()
            sleeper.join(WAIT_S)
            assert ended == [(wire.taken() is not None, False)]
        assert inbox.crowded() == 2
        assert inbox.wait_for(0, readable) == (False, False)
        while inbox.take_of(2) is not None:
            pass
        assert inbox.crowded() is None
        for fd in (readable, written):
            os.close(fd)
        other.close()


def test_who_looks_in_vain_looks_seldom() -> None:
    with pair() as wire:
        looks = []
        for _ in range(PATIENCE + SELDOM):
            looks.append(wire.inbox._look_ns() > 0)
            wire.inbox._looked(False)
        assert looks[:PATIENCE] == [True] * PATIENCE
        assert sum(looks) == PATIENCE + 1
        wire.inbox._looked(True)
        assert wire.inbox._look_ns() > 0


def test_waits_for_the_last_sender_before_the_next_send() -> None:
    """Each of them has to come; the fewest wakings are for the last."""
    with pair() as wire:
        second = replace(RECEIVE, node=2, transfer=8)
        assert wire.receive(RECEIVE, second, RECEIVE) == (0, 0)
        assert wire.receive(RECEIVE, second) == (0, 1)
        both = wire.receiver.moves(
            memoryview(wire.memories[1]), wire.words, [RECEIVE, SEND, second]
        )
        assert both.run(0, 3, EPOCH, STEP, BASE, [0]) == (0, 0)
        other = Outbox(2, wire.inbox.address)
        assert other.put([b"something"])
        assert wire.receive(RECEIVE, second) == (0, 0)
        other.close()


@contextmanager
def nodes(capacity: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ZmqTransport]]:
    monkeypatch.setattr(rings, "CAPACITY", capacity)
    made = [ZmqTransport(node, senders=[0, 1, 2]) for node in range(3)]
    where = {node.node: node.rings for node in made if node.rings is not None}
    for node in made:
        node.connect({other.node: other.endpoint for other in made}, where)
    try:
        yield made
    finally:
        for node in made:
            node.close()


def test_a_transport_waits_for_one_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    with nodes(4 * PAGE, monkeypatch) as (left, right, other):
        other.send(1, FRAME)  # stays where it is
        left.send(1, FRAME)
        assert right.expect(0) is None
        assert right.take(0) == FRAME
        assert right.take(0) is None
        left.send(1, replace(FRAME, payload=bytes(5 * PAGE)))  # too large: leaves a mark
        assert right.expect(0) is None
        assert right.take(0) is None  # a mark: its message comes by the socket
        assert right.stopped
        assert right.expect(0) == replace(FRAME, payload=bytes(5 * PAGE))
        assert not right.stopped
        host = ZmqTransport(3)
        host.connect({1: right.endpoint})
        host.send(1, Control("told", {}))
        assert right.expect(0) == Control("told", {})  # by the socket, as all that a host says
        host.close()
        for _ in range(3 * PAGE // 700):
            other.send(1, FRAME)
        assert right.expect(0) == FRAME  # there is too much of it
        woken: list[object] = []
        waiting = threading.Thread(target=lambda: woken.append(right.expect(0)))
        while right.take(2) is not None:
            pass
        waiting.start()
        left.send(1, FRAME)
        waiting.join(WAIT_S)
        assert woken == [None]


def test_no_native_send_overtakes_a_mark_that_is_owed(monkeypatch: pytest.MonkeyPatch) -> None:
    with nodes(PAGE, monkeypatch) as (left, right, _):
        assert left.ports is not None
        words = array("Q")
        bound = left.ports.moves(memoryview(bytearray(1280)), words, [SEND])
        while left._outboxes[1].put([b"four"]):
            pass
        while left._outboxes[1].put(None):
            pass
        left.send(1, FRAME)  # by the socket; its mark has no room yet
        assert right._inbox is not None
        while right._inbox.take_of(0) is not None:
            pass
        assert bound.run(0, 1, EPOCH, STEP, BASE, [0]) == (0, None)
        assert left._pay() is False
        assert bound.run(0, 1, EPOCH, STEP, BASE, [0]) == (1, None)
        assert right.expect(0) is None
        assert right.take(0) is None
        assert right.expect(0) == FRAME
        assert right.take(0) == replace(FRAME, payload=bytes(640))


def test_a_replaced_peer_has_another_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with nodes(PAGE, monkeypatch) as (left, right, _):
        assert left.ports is not None
        bound = left.ports.moves(memoryview(bytearray(1280)), array("Q"), [SEND])
        other = ZmqTransport(1, senders=[0])
        assert other.rings is not None
        left.connect({}, {}, replaced=[1])
        assert bound.run(0, 1, EPOCH, STEP, BASE, [0]) == (0, None)
        left.connect({1: other.endpoint}, {1: other.rings})
        assert bound.run(0, 1, EPOCH, STEP, BASE, [0]) == (1, None)
        assert other.expect(0) is None
        assert other.take(0) == replace(FRAME, payload=bytes(640))
        assert right.take(0) is None
        other.close()


def test_a_closed_transport_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with nodes(PAGE, monkeypatch) as (left, right, _):
        refused: list[BaseException] = []

        def wait() -> None:
            with pytest.raises(TransportClosedError) as caught:
                right.expect(0)
            refused.append(caught.value)

        waiting = threading.Thread(target=wait)
        waiting.start()
        right.close()
        waiting.join(WAIT_S)
        assert len(refused) == 1
        for call in (right.expect, right.take):
            with pytest.raises(TransportClosedError):
                call(0)
        left.send(1, FRAME)  # into memory that nobody reads
