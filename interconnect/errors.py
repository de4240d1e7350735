"""What can go wrong between chips.

    InterconnectError
    ├── SpecError             a link's numbers make no sense (also a ValueError)
    ├── TopologyError         chips, ports or cables that cannot be wired so (also a ValueError)
    │   ├── PortsExhaustedError   more cables than ports on a chip
    │   └── UnreachableError      no path between two chips
    ├── LinkError             a link was handed something it cannot carry (also a ValueError)
    ├── FrameError            a frame or control message that is not one (also a ValueError)
    └── TransportError        frames cannot be moved
        ├── UnknownPeerError      a destination that was never connected
        └── TransportClosedError  used after close

All keep their fields and survive pickle, because they cross process boundaries.
"""

from __future__ import annotations

from typing import Any


class InterconnectError(Exception):
    """Root of the package's errors."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own would call __init__ with the message instead of the fields.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class SpecError(InterconnectError, ValueError):
    """A number of a link specification is out of range."""

    def __init__(self, *, field: str, wanted: str, got: object) -> None:
        self.field, self.wanted, self.got = field, wanted, got
        super().__init__(f"link.{field}: wanted {wanted}, got {got!r}")


class TopologyError(InterconnectError, ValueError):
    """Chips, ports or cables that cannot be wired so."""

    def __init__(self, *, what: str, wanted: str, got: object) -> None:
        self.what, self.wanted, self.got = what, wanted, got
        super().__init__(f"topology: {what}: wanted {wanted}, got {got}")


class PortsExhaustedError(TopologyError):
    """A chip needs more cables than it has ports."""

    def __init__(self, *, chip: int, cables: int, ports: int) -> None:
        self.chip, self.cables, self.ports = chip, cables, ports
        super().__init__(
            what=f"chip {chip}", wanted=f"at most {ports} ports", got=f"{cables} cables"
        )


class UnreachableError(TopologyError):
    """No path leads from one chip to another."""

    def __init__(self, *, src: int, dst: int, restricted: bool) -> None:
        self.src, self.dst, self.restricted = src, dst, restricted
        via = " over the chips allowed to forward" if restricted else ""
        super().__init__(what=f"chip {src} to chip {dst}", wanted="a path", got=f"none{via}")


class LinkError(InterconnectError, ValueError):
    """A link was handed something it cannot carry."""

    def __init__(self, *, field: str, wanted: str, got: object) -> None:
        self.field, self.wanted, self.got = field, wanted, got
        super().__init__(f"link model: {field}: wanted {wanted}, got {got!r}")


class FrameError(InterconnectError, ValueError):
    """Bytes or fields that are not a frame or a control message."""

    def __init__(self, *, what: str, wanted: str, got: object) -> None:
        self.what, self.wanted, self.got = what, wanted, got
        super().__init__(f"frame: {what}: wanted {wanted}, got {got}")


class TransportError(InterconnectError):
    """Frames cannot be moved."""

    def __init__(self, *, node: int, what: str) -> None:
        self.node, self.what = node, what
        super().__init__(f"node {node}: {what}")


class UnknownPeerError(TransportError):
    """A message for a node that this one was never connected to."""

    def __init__(self, *, node: int, peer: int, known: tuple[int, ...]) -> None:
        self.peer, self.known = peer, known
        peers = ", ".join(map(str, known)) or "none"
        super().__init__(node=node, what=f"no connection to node {peer}; connected: {peers}")


class TransportClosedError(TransportError):
    """A transport was used after close."""

    def __init__(self, *, node: int, action: str) -> None:
        self.action = action
        super().__init__(node=node, what=f"{action} on a closed transport")
