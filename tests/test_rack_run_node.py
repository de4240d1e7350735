"""Nodes: messages reach the chip in the order of requests, whatever order peers' sockets keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from schedules import WEIGHTS, compiled

from chip.errors import ScheduleViolation
from chip.run.chip import Arrival, StepMessage
from compiler.ir import LinkUse
from compiler.pipeline import CompiledModel
from interconnect.bit_errors import ErrorSpec
from interconnect.frame import Control, Frame
from interconnect.rings import available
from interconnect.transport import LocalHub, Message
from interconnect.zmq_transport import ZmqTransport
from rack.errors import ControlError
from rack.run.driver import Driver
from rack.run.job import build_chip, chip_job
from rack.run.local import LocalRack
from rack.run.node import ChipNode, step_control
from rack.run.steps import StepResult, Turns

LINKS = compiled("1x2").network.links
INTO = next(link for link in LINKS if (link.src, link.dst) == (0, 1))
OUT = next(link for link in LINKS if (link.src, link.dst) == (1, 0))


class RecordingChip:
    """Keeps what it is given since the last reset."""

    def __init__(self) -> None:
        self.got: list[Arrival | StepMessage] = []
        self.advanced = 0

    def begin(self, message: StepMessage) -> None:
        self.got.append(message)

    def receive(self, arrival: Arrival) -> None:
        self.got.append(arrival)

    def reset(self) -> None:
        self.got.clear()

    def advance(self) -> bool:
        self.advanced += 1
        return True


def node(slots: dict[int, int] | None = None) -> tuple[ChipNode, RecordingChip, LocalHub]:
    hub, chip = LocalHub(), RecordingChip()
    made = ChipNode([INTO, OUT], 1, hub.transport(1), slots or {})
    made.attach(lambda _: chip)  # type: ignore[arg-type, return-value]
    return made, chip, hub


def frame(link: LinkUse = INTO, **changes: Any) -> Frame:
    values = {"epoch": 0, "link": link.id, "step": 1, "transfer": 0, "vectors": 1,
              "depart_cycle": 100, "check": 5, "payload": bytes(320)}  # fmt: skip
    return Frame(**{**values, **changes})


def epoch(number: int) -> Control:
    return Control("epoch", {"epoch": number})


def test_a_frame_passes_its_link_on_the_way_in() -> None:
    made, chip, _ = node()
    made.handle(frame(vectors=2, payload=bytes(640)))
    (arrival,) = chip.got
    assert isinstance(arrival, Arrival)
    first = 100 + INTO.latency_cycles + INTO.slot_cycles
    assert arrival.last_cycle - arrival.first_cycle == INTO.slot_cycles
    assert abs(arrival.first_cycle - first) <= INTO.slot_cycles
    assert (arrival.check, arrival.link, len(arrival.payload)) == (5, INTO.id, 640)


def test_a_slowed_link_delivers_later() -> None:
    as_built, chip, _ = node()
    as_built.handle(frame(vectors=3, payload=bytes(960)))
    slowed, late_chip, _ = node({INTO.id: 2 * INTO.slot_cycles})
    slowed.handle(frame(vectors=3, payload=bytes(960)))
    (on_time,), (late,) = chip.got, late_chip.got
    assert isinstance(on_time, Arrival)
    assert isinstance(late, Arrival)
    assert late.last_cycle > on_time.last_cycle


def test_frames_of_a_cancelled_request_are_dropped() -> None:
    made, chip, _ = node()
    made.handle(epoch(2))
    made.handle(frame(epoch=1))
    assert chip.got == []


def test_a_frame_that_overtakes_its_request_waits_for_it() -> None:
    made, chip, _ = node()
    made.handle(frame(step=7))
    made.handle(frame(epoch=1, step=8))  # a neighbour heard of request 1 before this node did
    made.handle(frame(epoch=2, step=9))
    late = StepMessage(sequence=7, step="decode/32", base_cycle=0, positions=(0,), slots=(0,))
    made.handle(step_control(late))  # the last of request 0; its frames are still this chip's
    assert [item.sequence for item in chip.got] == [7, 7]
    made.handle(frame(step=7, transfer=1))
    assert [item.sequence for item in chip.got] == [7, 7, 7]
    made.handle(epoch(1))
    assert [item.sequence for item in chip.got] == [8]
    made.handle(epoch(2))
    assert [item.sequence for item in chip.got] == [9]
    made.handle(epoch(3))
    assert chip.got == []


@pytest.mark.parametrize(
    ("message", "wanted", "got"),
    [
        (Control("report"), "epoch or step", "report"),
        (epoch(2), "an epoch after 2", "epoch 2"),
        (epoch(1), "an epoch after 2", "epoch 1"),
    ],
)
def test_a_control_message_out_of_order_is_refused(message: Control, wanted: str, got: str) -> None:
    made, chip, _ = node()
    made.handle(epoch(2))
    made.handle(frame(epoch=2))
    with pytest.raises(ControlError) as caught:
        made.handle(message)
    assert str(caught.value) == f"chip 1, serving: wanted {wanted} from the host, got {got}"
    assert made.epoch == 2
    assert len(chip.got) == 1  # it goes on as if nothing had come


def noisy_node(rate: float) -> tuple[ChipNode, RecordingChip, list[Mapping[str, Any]]]:
    """A node on whose links bits arrive wrong, and what it tells of."""
    chip, told = RecordingChip(), list[Mapping[str, Any]]()
    errors = dict.fromkeys((INTO.id, OUT.id), ErrorSpec(bit_error_rate=rate))
    made = ChipNode([INTO, OUT], 1, LocalHub().transport(1), {}, errors, told.append)
    made.attach(lambda _: chip)  # type: ignore[arg-type, return-value]
    assert list(made.noisy) == [INTO.id]  # errors are those of the receiving end
    return made, chip, told


def test_a_vector_with_a_wrong_bit_is_corrected_and_as_early_as_any() -> None:
    made, chip, told = noisy_node(1e-5)
    exact, as_sent, _ = node()
    for transfer in range(200):
        one = frame(transfer=transfer, payload=bytes(range(160)) * 2)
        made.handle(one)
        exact.handle(one)
    assert chip.got == as_sent.got
    assert len(chip.got) == 200
    assert made.noisy[INTO.id].corrected_vectors > 0
    assert told == []


def test_a_link_that_has_flagged_a_frame_delivers_nothing_until_the_next_epoch() -> None:
    made, chip, told = noisy_node(0.5)
    for transfer in range(3):
        made.handle(frame(transfer=transfer))
    first = {"chip": 1, "epoch": 0, "link": INTO.id, "sequence": 1, "transfer": 0}
    assert (told, chip.got) == ([first], [])
    assert made.noisy[INTO.id].flagged_vectors == 1
    made.handle(epoch(1))
    made.handle(frame(epoch=1, transfer=3))
    assert told == [first, {**first, "epoch": 1, "transfer": 3}]


def test_a_request_starts_with_idle_links() -> None:
    made, chip, _ = node()
    made.handle(frame(vectors=50, payload=bytes(50 * 320)))
    (before,) = chip.got
    made.handle(epoch(1))
    made.handle(frame(epoch=1))
    (after,) = chip.got
    assert isinstance(before, Arrival)
    assert isinstance(after, Arrival)
    assert after.first_cycle == before.first_cycle


def test_a_frame_of_a_strange_link_is_refused() -> None:
    made, _, _ = node()
    with pytest.raises(ScheduleViolation) as caught:
        made.handle(frame(OUT, transfer=4))
    text = f"a frame of a link that does not end here: wanted {[INTO.id]}, got {OUT.id}"
    assert str(caught.value) == f"chip 1, link {OUT.id}, cycle 100, transfer 4: {text}"


def test_what_leaves_carries_the_chip_s_cycle_and_the_request() -> None:
    made, _, hub = node()
    neighbour = hub.transport(0)
    made.handle(epoch(3))
    made.send(OUT.id, 9, 2, 1234, 77, memoryview(bytes(range(64)) * 10))
    sent = neighbour.receive(0)
    assert isinstance(sent, Frame)
    assert (sent.epoch, sent.link, sent.transfer, sent.step) == (3, OUT.id, 9, 2)
    assert (sent.depart_cycle, sent.vectors, sent.check) == (1234, 2, 77)
    assert bytes(sent.payload) == bytes(range(64)) * 10


def test_pump_handles_all_that_came_then_runs() -> None:
    made, chip, hub = node()
    assert not made.pump(0)
    host = hub.transport(2)
    message = StepMessage(sequence=4, step="decode/32", base_cycle=9, positions=(3,), slots=(0,))
    host.send(1, step_control(message))
    host.send(1, frame())
    assert made.pump(0)
    assert chip.got[0] == message
    assert isinstance(chip.got[1], Arrival)
    assert chip.advanced == 2


@contextmanager
def rack_of_rings(
    model: CompiledModel, slots: dict[int, int]
) -> Iterator[tuple[Driver, list[ChipNode]]]:
    """A host and chips whose frames go through rings, all in this thread."""
    host, links = model.layout.chips, model.network.links
    sockets = []
    for chip in range(host):
        senders = sorted({link.src for link in links if link.dst == chip} - {host})
        sockets.append(ZmqTransport(chip, senders=senders))
    sockets.append(ZmqTransport(host))
    rings = {socket.node: socket.rings for socket in sockets if socket.rings is not None}
    for socket in sockets:
        socket.connect({other.node: other.endpoint for other in sockets}, rings)
    nodes = []
    for chip in range(host):
        job = chip_job(model, chip, WEIGHTS)
        nodes.append(ChipNode(job.links, chip, sockets[chip], slots))
        nodes[-1].attach(lambda node, job=job: build_chip(job, node.send, carrier=node))  # type: ignore[misc]
    driver = Driver(model, WEIGHTS.open(), sockets[-1])
    try:
        yield driver, nodes
    finally:
        for made in nodes:
            made.transport.close()
        driver.close()


def by_rings(
    model: CompiledModel, slots: dict[int, int], *, native: bool = True
) -> StepResult:  # fmt: skip
    """Run a decode step; if `native`, Python may see what the host says, and no chip's frame."""
    with rack_of_rings(model, slots) as (driver, nodes):
        driver.reset()
        order = Turns(model)
        order.reset()
        driver.start(order.order("decode/32", [0], [5]))

        def feed(made: ChipNode) -> Message:
            message = made.transport.receive(30)
            assert message is not None
            return message

        for made in nodes:
            for _ in ("epoch", "step"):
                made.handle(feed(made))
            for operation in model.steps["decode/32"].programs[made.node].operations:
                link = getattr(operation.op, "link", None)
                if operation.opcode == "receive" and made._incoming[link].src == len(nodes):
                    made.handle(feed(made))
        seen: list[Message] = []

        def advance() -> None:
            while False in [made.chip.advance() for made in nodes]:
                assert any(made._awaited is not None for made in nodes)
                assert not seen
            message = driver.node.transport.receive(30)
            assert message is not None
            driver.node.handle(message)

        for made in nodes if native else ():
            made.handle = seen.append  # type: ignore[method-assign]
        return driver.finish(advance)[0]


@pytest.mark.skipif(not available(), reason="needs the native part and Linux")
@pytest.mark.parametrize(
    ("layout", "hardware"), [("2x2+1", "lesson"), ("1x3+2", "groqrack"), ("1x5", "two-ports")]
)
def test_all_moves_of_a_step_are_native(layout: str, hardware: str) -> None:
    model = compiled(layout, hardware, kinds="decode")
    local = LocalRack(model, WEIGHTS)
    local.reset()
    want = local.run_step("decode/32", [0], [5])
    local.close()
    got = by_rings(model, {})
    assert got.hash_share == want.hash_share
    assert got.logits is not None
    assert want.logits is not None
    assert got.logits.tobytes() == want.logits.tobytes()


@pytest.mark.skipif(not available(), reason="needs the native part and Linux")
def test_a_slower_link_is_refused_through_rings_as_through_queues() -> None:
    """The same violation: native moves leave it to Python, which has the very frame."""
    model = compiled("2x2+1", kinds="decode")
    for link in model.network.links:
        if model.layout.chips in (link.src, link.dst):
            continue
        slots = {link.id: link.slot_cycles + 1}
        local = LocalRack(model, WEIGHTS, slots=slots)
        local.reset()
        with pytest.raises(ScheduleViolation) as queues:
            local.run_step("decode/32", [0], [5])
        local.close()
        with pytest.raises(ScheduleViolation) as rings:
            by_rings(model, slots, native=False)
        assert rings.value.fields() == queues.value.fields()
        assert rings.value.link == link.name


@pytest.mark.skipif(not available(), reason="needs the native part and Linux")
def test_which_links_are_native() -> None:
    """Those of rings that make no errors; where a frame's bits are drawn, Python draws them."""
    socket = ZmqTransport(1, senders=[0])
    try:
        noisy = ChipNode([INTO, OUT], 1, socket, {}, {INTO.id: ErrorSpec(bit_error_rate=1e-9)})
        assert [noisy.carries(link.id) for link in (INTO, OUT)] == [False, True]
        clean = ChipNode([INTO, OUT], 1, socket, {})
        assert [clean.carries(link.id) for link in (INTO, OUT)] == [True, True]
    finally:
        socket.close()
    made, _, _ = node()
    assert [made.carries(link.id) for link in (INTO, OUT)] == [False, False]
