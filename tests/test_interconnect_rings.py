"""Rings in shared memory: order, wrapping, marks, waking, and who may write."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import threading
from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transport_suite import FRAME, WAIT_S

from interconnect import rings
from interconnect.frame import Control, Frame, encode_control
from interconnect.rings import PAGE, Inbox, Outbox, RingsAddress
from interconnect.zmq_transport import ZmqTransport

pytestmark = pytest.mark.skipif(not rings.available(), reason="needs the native part and Linux")

put = st.tuples(st.just("put"), st.sampled_from([0, 1]), st.lists(st.integers(0, 1500), max_size=3))
step = st.one_of(put, st.tuples(st.just("mark"), st.sampled_from([0, 1])), st.just(("take",)))


@settings(max_examples=200, deadline=None)
@given(st.lists(step, max_size=200))
def test_equal_to_queues(steps: list[tuple]) -> None:
    """Two senders, one page a ring: every message comes whole, in its sender's order."""
    inbox = Inbox([7, 3], PAGE)
    outboxes = [Outbox(sender, inbox.address) for sender in (7, 3)]
    queues: dict[int, deque[bytes | None]] = {7: deque(), 3: deque()}
    for number, (what, *args) in enumerate(steps):
        if what == "put":
            which, sizes = args
            parts = [bytes([number % 251]) * size for size in sizes]
            message = b"".join(parts)
            held = sum(12 + len(m or b"") + 7 for m in queues[(7, 3)[which]])
            done = outboxes[which].put(parts)
            assert done or held + len(message) + 19 > PAGE - 8  # refused only when nearly full
            if done:
                queues[(7, 3)[which]].append(message)
        elif what == "mark":
            if outboxes[args[0]].put(None):
                queues[(7, 3)[args[0]]].append(None)
        else:
            got = inbox.take()
            if got is None:
                assert not any(queues.values())
            else:
                assert got[1] == queues[got[0]].popleft()
    for outbox in outboxes:
        outbox.close()
    inbox.close()


def test_a_ring_without_room_has_room_for_one_mark() -> None:
    """What does not fit goes another way, and the mark that says so always has a place."""
    inbox = Inbox([0], PAGE)
    outbox = Outbox(0, inbox.address)
    put = 0
    while outbox.put([b"four"]):
        put += 1
    assert put == PAGE // 8 - 1
    assert outbox.put(None)
    assert not outbox.put(None)
    assert [got for _, got in iter(inbox.take, None)] == [b"four"] * put + [None]
    outbox.close()
    inbox.close()


def test_senders_take_turns() -> None:
    inbox = Inbox([0, 1])
    for sender in (0, 1):
        outbox = Outbox(sender, inbox.address)
        for _ in range(3):
            assert outbox.put([b"x"])
        outbox.close()
    assert [got[0] for got in iter(inbox.take, None)] == [0, 1, 0, 1, 0, 1]
    inbox.close()


def test_a_sleeper_is_woken_once() -> None:
    inbox = Inbox([0])
    outbox = Outbox(0, inbox.address)
    assert inbox.take() is None
    assert not inbox.listen()
    assert inbox.may_sleep()
    assert outbox.put([b"a"])
    assert outbox.put([b"b"])
    assert os.read(inbox.pipe_fd, 16) == b"\0"
    inbox.awake()
    assert inbox.listen()
    assert not inbox.may_sleep()  # something has come since the last look
    assert inbox.take() == (0, b"a")
    outbox.close()
    inbox.close()


def test_who_may_not_write() -> None:
    inbox = Inbox([1])
    with pytest.raises(ValueError, match="is not in list"):
        Outbox(2, inbox.address)
    with pytest.raises(ValueError, match="is another one than 1 was told"):
        Outbox(1, inbox.address._replace(token=bytes(16)))
    with pytest.raises(OSError, match="No such file"):
        Outbox(1, inbox.address._replace(memory_fd=999_999))
    inbox.close()


def test_memory_that_was_not_laid_out() -> None:
    memory = mmap.mmap(-1, 3 * PAGE)
    with pytest.raises(ValueError, match="a memory that was laid out"):
        rings._rings.take(memory, 0)
    with pytest.raises(ValueError, match="a memory that was laid out"):
        rings._rings.lay_out(memory, bytes(16), 2, PAGE)
    with pytest.raises(ValueError, match="a token of 16 bytes"):
        rings._rings.lay_out(memory, b"short", 1, PAGE)
    rings._rings.lay_out(memory, bytes(16), 1, PAGE)
    with pytest.raises(ValueError, match="wanted one of 1 rings, got 1"):
        rings._rings.put(memory, 1, [b""])
    with pytest.raises(ValueError, match="wanted one of 1 rings, got 1"):
        rings._rings.skip(memory, 1)
    with pytest.raises(TypeError, match="a sequence of buffers"):
        rings._rings.put(memory, 0, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bytes-like"):
        rings._rings.put(memory, 0, ["text"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="bytes-like"):
        rings._rings.take(5, 0)  # type: ignore[arg-type]
    native = rings._rings
    for call in (native.take, native.put, native.skip, native.listen, native.sleep):
        with pytest.raises(TypeError, match="function takes exactly"):
            call(memory)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="integer"):
        rings._rings.take(memory, "first")  # type: ignore[arg-type]
    memory[PAGE + 64] = 8  # a writer that says it has written, but has not
    memory[2 * PAGE : 2 * PAGE + 4] = (PAGE + 1).to_bytes(4, "little")
    with pytest.raises(ValueError, match="a record longer than its ring"):
        rings._rings.take(memory, 0)
    memory.close()  # BufferError if a refusal had kept the memory


def pair(capacity: int, monkeypatch: pytest.MonkeyPatch) -> list[ZmqTransport]:
    """Two transports whose frames go through rings of that capacity."""
    monkeypatch.setattr(rings, "CAPACITY", capacity)
    nodes = [ZmqTransport(node, senders=[0, 1]) for node in (0, 1)]
    where = {node.node: node.rings for node in nodes if node.rings is not None}
    for node in nodes:
        node.connect({other.node: other.endpoint for other in nodes}, where)
    return nodes


def test_what_does_not_fit_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = pair(PAGE, monkeypatch)
    payloads = [bytes([i]) * 320 * (1 + 40 * (i % 3 == 0)) for i in range(30)]

    def send_all() -> None:
        for payload in payloads:
            left.send(1, frame_of(payload))
        while left._owed:
            left.receive(0.01)

    sender = threading.Thread(target=send_all)
    sender.start()
    left_over = Control("left", {})
    got = []
    for number in range(len(payloads)):
        if number == 5:
            right.send(1, left_over)  # not of that sender: may come at any place
        message = right.receive(WAIT_S)
        while message == left_over:
            message = right.receive(WAIT_S)
        assert isinstance(message, Frame)
        got.append(bytes(message.payload))
    sender.join()
    assert got == payloads
    for node in (left, right):
        node.close()


def frame_of(payload: bytes) -> Frame:
    return Frame(
        epoch=1, link=2, step=3, transfer=4, vectors=len(payload) // 320, depart_cycle=5,
        payload=payload,
    )  # fmt: skip


def fill(node: ZmqTransport, peer: int) -> None:
    """Fill a peer's ring until not even a mark has room."""
    while node._outboxes[peer].put([bytes(320)]):
        pass
    while node._outboxes[peer].put(None):
        pass


def test_a_reader_that_takes_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = pair(PAGE, monkeypatch)
    while left._outboxes[1].put([b"C", encode_control(Control("fills"))]):
        pass
    sent = [frame_of(bytes([number]) * 320) for number in range(40)]
    for frame in sent:
        left.send(1, frame)
    assert left._owed[1] > 0
    right.send(0, FRAME)
    assert left.receive(WAIT_S) == FRAME  # it still hears
    got: list[Frame] = []
    while len(got) < len(sent):
        message = right.receive(0)
        if isinstance(message, Frame):
            got.append(message)
        assert left.receive(0) is None  # gives the ring the marks that it has room for
    assert [bytes(frame.payload) for frame in got] == [bytes(frame.payload) for frame in sent]
    assert not left._owed
    for node in (left, right):
        node.close()


def test_a_mark_without_its_message_stops_only_the_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = pair(PAGE, monkeypatch)
    assert left._outboxes[1].put(None)
    left.send(1, FRAME)
    assert right.receive(0.01) is None
    left._open(1).send(b"C" + encode_control(Control("word")))
    assert right.receive(WAIT_S) == Control("word")
    right.send(1, FRAME)
    right.connect({0: "ipc:///another"}, replaced=[0])  # so what it left is of no use
    assert right.receive(WAIT_S) == FRAME
    assert right.receive(0) is None
    for node in (left, right):
        node.close()


def test_a_new_process_in_a_node_s_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the one before has left in the ring, and owes, is dropped on both sides."""
    left, right = pair(PAGE, monkeypatch)
    fill(right, 0)
    right.send(0, FRAME)
    fill(left, 1)
    left.send(1, FRAME)
    assert left._owed == {1: 1}
    right.close()
    fresh = ZmqTransport(1, senders=[0, 1])
    assert left.rings is not None
    assert fresh.rings is not None
    left.connect({1: fresh.endpoint}, {1: fresh.rings}, replaced=[1])
    fresh.connect({0: left.endpoint}, {0: left.rings})
    fresh.send(0, replace(FRAME, step=7))
    left.send(1, replace(FRAME, step=8))
    assert left.receive(WAIT_S) == replace(FRAME, step=7)
    assert fresh.receive(WAIT_S) == replace(FRAME, step=8)
    assert left.receive(0) is fresh.receive(0) is None
    for node in (left, fresh):
        node.close()


def write(address: RingsAddress, count: int) -> None:
    """Write as another process."""
    outbox = Outbox(4, address)
    for number in range(count):
        while not outbox.put([number.to_bytes(4, "little"), bytes(number % 300)]):
            pass
    outbox.close()


def test_between_processes() -> None:
    inbox = Inbox([4], PAGE)
    process = multiprocessing.get_context("spawn").Process(target=write, args=(inbox.address, 5000))
    process.start()
    for number in range(5000):
        while (got := inbox.take()) is None:
            inbox.listen()
        assert got == (4, number.to_bytes(4, "little") + bytes(number % 300))
    process.join(WAIT_S)
    assert process.exitcode == 0
    inbox.close()
