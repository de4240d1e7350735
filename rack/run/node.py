"""A chip (or the host's port) with its link endpoints on a transport: a thin shell, no thread.

Incoming frames pass the link model; outgoing frames carry the chip's own cycle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from chip.errors import ScheduleViolation
from chip.run.chip import Arrival, Chip, StepMessage
from compiler.ir import LinkUse
from interconnect.frame import Control, Frame, Payload
from interconnect.link import LinkModel
from interconnect.transport import Message, Transport
from rack.errors import ControlError
from rack.run.control import ChipState, ControlKind, Sender
from rack.run.flagged import LinkErrors, flag, noisy_ends

LinkSlots = Mapping[int, int]
"""Link id -> the link's real slot cycles, for experiments with a slower link."""

Flagged = Callable[[Mapping[str, Any]], None]
"""Takes what is to be told of a frame that cannot be corrected."""

NO_ERRORS: LinkErrors = MappingProxyType({})


class ChipNode:
    """Moves messages between a transport and a chip."""

    def __init__(
        self, links: Sequence[LinkUse], node: int, transport: Transport, slots: LinkSlots,
        errors: LinkErrors = NO_ERRORS, flagged: Flagged | None = None,
    ) -> None:  # fmt: skip
        self.node, self.transport = node, transport
        self.epoch = 0
        self._early: list[Frame] = []  # of a request that the host has not told of yet
        self._targets = {link.id: link.dst for link in links if link.src == node}
        self._incoming = [link for link in links if link.dst == node]
        self._slots = slots
        self.noisy = noisy_ends(self._incoming, errors)
        self._flagged = flagged
        self._cut: set[int] = set()  # links that have flagged a frame of this epoch
        self._models: dict[int, LinkModel] = {}
        self._reset_links()
        self.chip: Chip

    def attach(self, make: Callable[[ChipNode], Chip]) -> None:
        """Make the chip, which sends through this node."""
        self.chip = make(self)

    def _reset_links(self) -> None:
        self._models = {
            link.id: LinkModel(self._slots.get(link.id, link.slot_cycles), link.latency_cycles)
            for link in self._incoming
        }

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
        self.epoch = epoch
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
