"""The control protocol of the host and a chip: kinds of messages, states, transitions.

    STARTED --hello--> LOADING --ready--> LOADED --peers--> SERVING --stop--> STOPPED
        \\                 \\                 \\                 \\
         +-----------------+-----error-------+-----------------+--> FAILED

A spare's process says `spare` first and is in SPARE; the host's `take` then begins the talk with
the chip whose place it takes, in STARTED. Chips that serve are told of it by `peers` once more, and
answer `ready`.

Both ends follow the same table with every message that they send or receive. A message that the
table does not allow is refused. Frames of vectors are not part of the protocol: those of a faster
chip may come at any time. Sans-I/O, as in h11: a transport carries the messages
(interconnect/frame.py has their form).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum
from types import MappingProxyType

from interconnect.frame import Control
from rack.errors import ControlError


class ControlKind(StrEnum):
    """A kind of control message, as it is written on the wire."""

    HELLO = "hello"  # chip: its number, endpoint, rings, process and the code it runs
    SPARE = "spare"  # a spare: its number, endpoint, process and the code it runs
    TAKE = "take"  # host: be this chip, with this job; also to one that is a chip already
    READY = "ready"  # chip: it has loaded; or it knows the peers that others took the place of
    PEERS = "peers"  # host: where the other chips are; later: where those are that were replaced
    EPOCH = "epoch"  # host: a request begins; what is left of the last one is dropped
    STEP = "step"  # host: run this step
    FLAG = "flag"  # chip: a frame came with errors that cannot be corrected
    REPORT = "report"  # host: say what you wait for; chip: the answer
    STOP = "stop"  # host: end
    ERROR = "error"  # chip: what ended it, with its fields


class Sender(Enum):
    """The sender of a message."""

    HOST = "the host"
    CHIP = "the chip"


class ChipState(Enum):
    """The state of a chip in a run."""

    STARTED = "started"
    SPARE = "spare"
    LOADING = "loading"
    LOADED = "loaded"
    SERVING = "serving"
    STOPPED = "stopped"
    FAILED = "failed"


Said = tuple[Sender, ControlKind]
_ERROR = {(Sender.CHIP, ControlKind.ERROR): ChipState.FAILED}
_STOP = {(Sender.HOST, ControlKind.STOP): ChipState.STOPPED}
TRANSITIONS: Mapping[ChipState, Mapping[Said, ChipState]] = MappingProxyType({
    ChipState.STARTED: {
        (Sender.CHIP, ControlKind.HELLO): ChipState.LOADING,
        (Sender.CHIP, ControlKind.SPARE): ChipState.SPARE,
        **_ERROR,
    },
    ChipState.SPARE: {
        (Sender.HOST, ControlKind.TAKE): ChipState.STARTED,
        **_STOP,
        **_ERROR,
    },
    ChipState.LOADING: {
        (Sender.CHIP, ControlKind.READY): ChipState.LOADED,
        **_ERROR,
    },
    ChipState.LOADED: {
        (Sender.HOST, ControlKind.PEERS): ChipState.SERVING,
        (Sender.HOST, ControlKind.TAKE): ChipState.STARTED,
        **_STOP,
        **_ERROR,
    },
    ChipState.SERVING: {
        (Sender.HOST, ControlKind.PEERS): ChipState.SERVING,
        (Sender.CHIP, ControlKind.READY): ChipState.SERVING,
        (Sender.HOST, ControlKind.TAKE): ChipState.STARTED,
        (Sender.HOST, ControlKind.EPOCH): ChipState.SERVING,
        (Sender.HOST, ControlKind.STEP): ChipState.SERVING,
        (Sender.HOST, ControlKind.REPORT): ChipState.SERVING,
        (Sender.CHIP, ControlKind.REPORT): ChipState.SERVING,
        (Sender.CHIP, ControlKind.FLAG): ChipState.SERVING,
        **_STOP,
        **_ERROR,
    },
    ChipState.STOPPED: {},
    ChipState.FAILED: {},
})  # fmt: skip
"""State -> what may be said in it, and the state that follows."""


class Conversation:
    """The messages between the host and one chip; either end keeps one."""

    def __init__(self, chip: int) -> None:
        self.chip = chip
        self.state = ChipState.STARTED

    def take(self, sender: Sender, message: Control) -> ControlKind:
        """Take a message and return its kind. Raises ControlError if it is not allowed now."""
        following = TRANSITIONS[self.state]
        for (who, kind), state in following.items():
            if (who, kind) == (sender, message.kind):
                self.state = state
                return kind
        may = [kind.value for who, kind in following if who is sender]
        raise ControlError(
            chip=self.chip, state=self.state.value, sender=sender.value,
            wanted=" or ".join(may) or "nothing", got=message.kind,
        )  # fmt: skip
