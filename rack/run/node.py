"""A chip (or the host's port) with its link endpoints on a transport: a thin shell, no thread.

Incoming frames pass the link model; outgoing frames carry the chip's own cycle.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from chip.errors import ScheduleViolation
from chip.ops.moves import Receive, Send
from chip.ops.program import Scheduled
from chip.run.chip import Arrival, Carry, Chip, StepMessage
from chip.sram import Sram
from compiler.ir import LinkUse
from interconnect.frame import Control, Frame, Payload
from interconnect.link import LinkModel
from interconnect.rings import WORDS, Receiving, Sending
from interconnect.transport import Message, Transport
from interconnect.zmq_transport import ZmqTransport
from rack.errors import ControlError
from rack.run.control import ChipState, ControlKind, Sender
from rack.run.flagged import LinkErrors, flag, noisy_ends

LinkSlots = Mapping[int, int]
"""Link id -> the link's real slot cycles, for experiments with a slower link."""

Flagged = Callable[[Mapping[str, Any]], None]
"""Takes what is to be told of a frame that cannot be corrected."""

NO_ERRORS: LinkErrors = MappingProxyType({})


class ChipNode:
    """Moves messages between a transport and a chip.

    It is its chip's `Carrier` where the transport has ports: frames then stay in their rings until
    the program's receive takes them. What native code does not take as usual comes through
    `handle`, as on any transport.
    """

    def __init__(
        self, links: Sequence[LinkUse], node: int, transport: Transport, slots: LinkSlots,
        errors: LinkErrors = NO_ERRORS, flagged: Flagged | None = None,
    ) -> None:  # fmt: skip
        self.node, self.transport = node, transport
        self.epoch = 0
        self._early: list[Frame] = []  # of a request that the host has not told of yet
        self._targets = {link.id: link.dst for link in links if link.src == node}
        self._incoming = {link.id: link for link in links if link.dst == node}
        self._slots = slots
        self.noisy = noisy_ends(self._incoming.values(), errors)
        self._flagged = flagged
        self._cut: set[int] = set()  # links that have flagged a frame of this epoch
        self._words = array("Q", [0] * (WORDS * len(self._incoming)))
        self._word = {link: WORDS * place for place, link in enumerate(self._incoming)}
        self._models: dict[int, LinkModel] = {}
        self._reset_links()
        self._rings: ZmqTransport | None = None
        self._awaited: int | None = None  # the ring that the chip's moves wait for
        if isinstance(transport, ZmqTransport) and transport.ports is not None:
            self._rings = transport
        self.chip: Chip

    def attach(self, make: Callable[[ChipNode], Chip]) -> None:
        """Make the chip, which sends through this node."""
        self.chip = make(self)

    def _reset_links(self) -> None:
        words = memoryview(self._words)
        for number, link in self._incoming.items():
            own = words[self._word[number] :]
            own[0] = own[1] = 0
            self._models[number] = LinkModel(self._slot(link), link.latency_cycles, own)

    def _slot(self, link: LinkUse) -> int:
        return self._slots.get(link.id, link.slot_cycles)

    # -- native moves

    def last_taken(self, link: int) -> tuple[int, int]:
        """See `Carrier.last_taken`."""
        at = self._word[link] + 2
        step, transfer = self._words[at : at + 2]
        return (step, transfer) if step else (-1, -1)  # steps are numbered from 1 on

    def carries(self, link: int) -> bool:
        """See `Carrier.carries`."""
        if self._rings is None or self._rings.ports is None or link in self.noisy:
            return False
        source = self._incoming.get(link)
        return source is None or source.src in self._rings.ports.senders

    def bind(self, sram: Sram, moves: Sequence[tuple[Scheduled, int]]) -> Carry:
        """See `Carrier.bind`."""
        rings = self._rings
        assert rings is not None
        assert rings.ports is not None
        links = [one.op.link for one, _ in moves if isinstance(one.op, Send | Receive)]
        bound = rings.ports.moves(
            sram.memory(0, sram.size), self._words,
            [self._move(operation, window) for operation, window in moves],
        )  # fmt: skip

        def carry(place: int, stop: int, sequence: int, base: int, shares: list[int]) -> int:
            self._awaited = None
            if rings.stopped:
                return place
            done, ring = bound.run(place, stop, self.epoch, sequence, base, shares)
            self._awaited = ring
            if done < stop and ring is None and (link := links[done]) in self._incoming:
                # Not as usual: what the ring has, up to the next frame of that link.
                sender = self._incoming[link].src
                while not self.chip.holds(link) and (got := rings.take(sender)) is not None:
                    self.handle(got)
            return done

        return carry

    def _move(self, operation: Scheduled, window: int) -> Sending | Receiving:
        op = operation.op
        if isinstance(op, Send):
            return Sending(
                node=self._targets[op.link], link=op.link, transfer=op.transfer,
                vectors=op.vectors, address=op.src, cycle=operation.start, row=op.row or 0,
            )  # fmt: skip
        assert isinstance(op, Receive)
        link = self._incoming[op.link]
        return Receiving(
            node=link.src, link=op.link, transfer=op.transfer, vectors=op.vectors,
            address=op.dst, first_cycle=operation.start, last_cycle=operation.end,
            window_cycles=window, word=self._word[op.link],
            slot_cycles=self._slot(link), latency_cycles=link.latency_cycles,
        )  # fmt: skip

    def receive(self) -> Message | None:
        """Wait for a message, or until the chip finds what it waits for in a ring: None."""
        rings = self._rings
        if self._awaited is None or rings is None or rings.ports is None:
            return self.transport.receive(None)
        return rings.expect(rings.ports.senders[self._awaited])

    # -- messages

    def send(
        self, link: int, transfer: int, sequence: int, cycle: int, check: int, payload: memoryview
    ) -> None:
        """Hand vectors to a link (`chip.run.chip.Departure`)."""
        frame = Frame(
            epoch=self.epoch, link=link, step=sequence, transfer=transfer,
            vectors=payload.nbytes // 320, depart_cycle=cycle, check=check, payload=payload,
        )  # fmt: skip
        self.transport.send(self._targets[link], frame)

    def handle(self, message: Message) -> None:
        """Take one message. Raises ScheduleViolation or ControlError if it is not allowed."""
        if isinstance(message, Frame):
            self._frame(message)
        elif message.kind == ControlKind.STEP:
            self.chip.begin(_step_message(message))
        elif message.kind == ControlKind.EPOCH:
            self._enter(message.values["epoch"])
        else:
            raise self._refused(f"{ControlKind.EPOCH} or {ControlKind.STEP}", message.kind)

    def _enter(self, epoch: int) -> None:
        """Begin an epoch when the host says so; frames of a faster chip may be waiting for it.

        Messages of different senders have no order, and steps of the old epoch may still come
        from the host. So a frame alone begins nothing.
        """
        if epoch <= self.epoch:
            raise self._refused(f"an epoch after {self.epoch}", f"epoch {epoch}")
        self.epoch, self._awaited = epoch, None
        self.chip.reset()
        self._reset_links()
        self._cut.clear()
        early, self._early = self._early, []
        for frame in early:
            self._frame(frame)

    def _refused(self, wanted: str, got: str) -> ControlError:
        state, sender = ChipState.SERVING.value, Sender.HOST.value
        return ControlError(chip=self.node, state=state, sender=sender, wanted=wanted, got=got)

    def _frame(self, frame: Frame) -> None:
        if frame.epoch < self.epoch:  # of a request that was cancelled
            return
        if frame.epoch > self.epoch:
            self._early.append(frame)
            return
        model = self._models.get(frame.link)
        if model is None:
            raise ScheduleViolation(
                "a frame of a link that does not end here", chip=self.node, link=str(frame.link),
                cycle=frame.depart_cycle, operation=f"transfer {frame.transfer}",
                wanted=sorted(self._models), got=frame.link,
            )  # fmt: skip
        arrival = model.carry(frame.depart_cycle, frame.vectors)
        payload = self._decoded(frame) if self.noisy else frame.payload
        if payload is None:
            return
        self.chip.receive(
            Arrival(
                link=frame.link,
                sequence=frame.step,
                transfer=frame.transfer,
                first_cycle=arrival.first_cycle,
                last_cycle=arrival.last_cycle,
                payload=payload,
                check=frame.check,
            )
        )

    def _decoded(self, frame: Frame) -> Payload | None:
        """Return a frame's payload after the link's errors and their correction, or None.

        A frame that cannot be corrected is told of, and the link then delivers nothing in this
        epoch: the chip waits for that frame, and would take the next one for it.
        """
        if (noisy := self.noisy.get(frame.link)) is None:
            return frame.payload
        if frame.link in self._cut:
            return None
        payload = noisy.receive(frame)
        if payload is None:
            self._cut.add(frame.link)
            if self._flagged is not None:
                self._flagged(flag(self.node, frame))
        return payload

    def pump(self, timeout_s: float) -> bool:
        """Handle messages, waiting up to `timeout_s` for the first; run. True on progress."""
        message = self.transport.receive(timeout_s)
        progress = message is not None
        while message is not None:
            self.handle(message)
            message = self.transport.receive(0)
        self.chip.advance()
        return progress


def step_control(message: StepMessage) -> Control:
    """Return the control message that carries a step message."""
    return Control(
        ControlKind.STEP,
        {
            "sequence": message.sequence,
            "step": message.step,
            "base": message.base_cycle,
            "positions": list(message.positions),
            "slots": list(message.slots),
        },
    )


def _step_message(control: Control) -> StepMessage:
    values = control.values
    return StepMessage(
        sequence=values["sequence"], step=values["step"], base_cycle=values["base"],
        positions=tuple(values["positions"]), slots=tuple(values["slots"]),
    )  # fmt: skip
