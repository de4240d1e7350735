"""The processes of a rack: which of them is which chip, what was said with each, who is heard.

Processes keep their numbers (rack/run/launcher.py). Chips begin in those of their own numbers; the
others are spares. A process that was replaced is gone: what it may still say is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interconnect.frame import Control
from interconnect.rings import rings_address
from interconnect.zmq_transport import ZmqTransport
from rack.errors import ControlError, OtherCodeError
from rack.run.control import ChipState, ControlKind, Conversation, Sender
from rack.run.launcher import Launcher
from rack.run.pulse import SILENT_SECONDS, Pulse


@dataclass(slots=True, kw_only=True)
class Member:
    """One process: the talk with it, and what it has said of itself."""

    talk: Conversation
    pid: int = 0  # on its machine
    endpoint: str = ""
    rings: Sequence[Any] | None = None  # `interconnect.rings.RingsAddress`, as it travels
    awaited: int = 1  # answers to what it was asked to be, or to know

    @property
    def ready(self) -> bool:
        """It is what it was asked to be, and knows whom it was told of."""
        return not self.awaited


class Members:
    """All processes. `code` is what theirs has to be equal to (`running_code`)."""

    def __init__(
        self, chips: int, spares: int, *, launcher: Launcher, socket: ZmqTransport, pulse: Pulse,
        code: Mapping[str, str],
    ) -> None:  # fmt: skip
        self.chips, self._launcher, self._socket = chips, launcher, socket
        self._pulse, self._code = pulse, code
        self.processes = {chip: chip for chip in range(chips)}  # chip -> its process
        self.spares = list(range(chips + 2, chips + 2 + spares))  # processes
        self._members = {
            process: Member(talk=Conversation(process)) for process in (*range(chips), *self.spares)
        }
        self._gone: set[int] = set()
        for process in self._members:
            pulse.watch(process)

    def at(self, chip: int) -> Member:
        """Return the process of a chip."""
        return self._members[self.processes[chip]]

    @property
    def everybody(self) -> list[int]:
        """The processes, of chips and spares."""
        return list(self._members)

    def named(self, processes: Iterable[int]) -> dict[int, int]:
        """Return process -> its chip; a spare has its own number."""
        chips = {process: chip for chip, process in self.processes.items()}
        return {process: chips.get(process, process) for process in processes}

    def missing(self, processes: Iterable[int]) -> list[int]:
        """Return those that are not ready."""
        return [process for process in processes if not self._members[process].ready]

    def hear(self, message: Control) -> ControlKind | None:
        """Take a process's message, and what it says of itself; None from one that is gone.

        Raises ControlError for a message that may not come now, OtherCodeError.
        """
        values = message.values
        process = values["process"]
        if process in self._gone:
            return None
        member = self._members.get(process)
        if member is None:
            raise ControlError(
                chip=values["chip"], state=f"none of the {self.chips} chips of this rack",
                sender="it", wanted="nothing", got=message.kind,
            )  # fmt: skip
        kind = member.talk.take(Sender.CHIP, message)
        if kind in (ControlKind.HELLO, ControlKind.SPARE):
            self._check_code(values)
            member.pid = values["pid"]
            member.endpoint, member.rings = values["endpoint"], values["rings"]
        if kind in (ControlKind.SPARE, ControlKind.READY):
            member.awaited -= 1
        return kind

    def _check_code(self, hello: Mapping[str, Any]) -> None:
        """Refuse a process that runs other code than this one."""
        for what, wanted in self._code.items():
            if (got := hello["code"][what]) != wanted:
                raise OtherCodeError(
                    chip=hello["chip"], where=hello["where"], what=what, wanted=wanted, got=got
                )

    # -- who is heard

    def silence(self, chip: int) -> float:
        """Return for how many seconds a chip has not been heard."""
        return self._pulse.silence(self.processes[chip])

    def mute(self, seconds: float = SILENT_SECONDS) -> dict[int, float]:
        """Return the chips that have been silent for longer, and for how long."""
        silent = {chip: self._pulse.silence(at) for chip, at in sorted(self.processes.items())}
        return {chip: length for chip, length in silent.items() if length > seconds}

    @property
    def spares_heard(self) -> int:
        """How many spares are heard now. From any thread."""
        return sum(self._pulse.silence(spare) <= SILENT_SECONDS for spare in tuple(self.spares))

    def drop_spares(self, seconds: float) -> None:
        """Count no more on spares that have been silent for longer."""
        for process in list(self.spares):
            if self._pulse.silence(process) > seconds:
                self.drop(process)

    # -- changes

    def drop(self, process: int) -> None:
        """End a process; what it may still say is of no use."""
        if process in self.spares:
            self.spares.remove(process)
        self._gone.add(process)
        self._members.pop(process, None)
        self._pulse.forget(process)
        self._launcher.end(process)

    def replace(self, chip: int) -> None:
        """Let the spare that was heard last be a chip's process; end the one before."""
        self.drop(self.processes[chip])
        self.processes[chip] = min(self.spares, key=self._pulse.silence)
        self.spares.remove(self.processes[chip])

    def take(self, chip: int, job: bytes) -> None:
        """Give a chip's process its job. A spare is known by its own number until then."""
        member, message = self.at(chip), Control(ControlKind.TAKE, {"job": job})
        to = self.processes[chip] if member.talk.state is ChipState.SPARE else chip
        member.talk.take(Sender.HOST, message)
        member.talk = Conversation(chip)
        member.awaited += 1
        self._socket.connect({to: member.endpoint}, replaced=[to])
        self._socket.send(to, message)

    # -- addresses

    def meet(self) -> None:
        """Tell all chips, and this process, where the others are."""
        self._socket.connect(self._endpoints())
        self._tell(range(self.chips), range(self.chips), [])

    def meet_again(self, replaced: Sequence[int]) -> None:
        """Tell all chips, and this process, where those are that were replaced or begin anew.

        No chip sends anything until the next epoch, so the order does not matter.
        """
        everyone, found = range(self.chips), self._endpoints()
        numbers = [self.processes[chip] for chip in replaced]
        ends = {chip: found[chip] for chip in replaced}
        self._socket.connect(ends, replaced=[*replaced, *numbers])
        self._tell([chip for chip in everyone if chip in replaced], everyone, replaced)
        self._tell([chip for chip in everyone if chip not in replaced], replaced, replaced)

    def _endpoints(self) -> dict[int, str]:
        """Return where the chips and this process are."""
        found = {chip: self.at(chip).endpoint for chip in self.processes}
        return {**found, self.chips: self._socket.endpoint}

    def _tell(self, chips: Sequence[int], of: Sequence[int], replaced: Sequence[int]) -> None:
        """Tell chips where others are, which of those were replaced, and the rings for them."""
        found = self._endpoints()
        ends = [[chip, found[chip]] for chip in (*of, self.chips)]
        members = ((chip, self.at(chip)) for chip in of)
        rings = [(chip, rings_address(one.rings)) for chip, one in members if one.rings is not None]
        for chip in chips:
            peers = Control(ControlKind.PEERS, {
                "endpoints": ends,
                "rings": [[peer, list(at)] for peer, at in rings if chip in at.senders],
                "replaced": list(replaced),
            })  # fmt: skip
            member = self.at(chip)
            member.awaited += bool(replaced)
            member.talk.take(Sender.HOST, peers)
            self._socket.send(chip, peers)
