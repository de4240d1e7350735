"""What travels between nodes: frames of vectors, and control messages.

A frame is a small msgpack header and the raw vectors; a control message is one msgpack map. Sans
I/O: bytes in, bytes out. The chip compares a payload's length with `vectors`, because it can name
the operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, TypeAlias

import msgpack

from interconnect.errors import FrameError

FRAME_VERSION = 1
VECTOR_BYTES = 320
_MOST = (1 << 64) - 1

Payload: TypeAlias = bytes | bytearray | memoryview

_FIELDS = (
    *("version", "flags", "epoch", "link", "step"),
    *("transfer", "vectors", "depart_cycle", "check"),
)


_numbers = attrgetter(*_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Vectors on their way over one link. All numbers are integers in 0..2^64 - 1.

    Raises FrameError for a number outside, or a version other than FRAME_VERSION.
    """

    version: int = FRAME_VERSION
    flags: int = 0
    epoch: int  # of the request; frames of a cancelled epoch are dropped by the receiver
    link: int
    step: int
    transfer: int
    vectors: int
    depart_cycle: int
    check: int = 0  # result frames: this chip's share of the 64-bit data hash
    payload: Payload = b""  # [vectors, 320] uint8

    def __post_init__(self) -> None:
        for place, value in enumerate(_numbers(self)):  # every vector that moves comes by here
            if type(value) is not int or value < 0 or value > _MOST:
                name = _FIELDS[place]
                raise FrameError(what=name, wanted="an integer in 0..2^64-1", got=repr(value))
        if self.version != FRAME_VERSION:
            raise FrameError(what="version", wanted=str(FRAME_VERSION), got=self.version)


@dataclass(frozen=True, slots=True)
class Control:
    """A message about the run: a kind and named values.

    Values are what msgpack keeps: None, bool, int, float, str, bytes, lists, maps. Tuples arrive
    as lists.
    """

    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)


def encode(frame: Frame) -> tuple[bytes, Payload]:
    """Return a frame's header, and its payload as it is: not copied."""
    return msgpack.packb(_numbers(frame)), frame.payload


def decode(header: Payload, payload: Payload) -> Frame:
    """Return the frame of a header and payload; FrameError when the header is not one."""
    numbers = _unpack("header", header)
    if not isinstance(numbers, list) or len(numbers) != len(_FIELDS):
        raise FrameError(what="header", wanted=f"{len(_FIELDS)} numbers", got=repr(numbers))
    version, flags, epoch, link, step, transfer, vectors, depart, check = numbers
    return Frame(
        version=version, flags=flags, epoch=epoch, link=link, step=step, transfer=transfer,
        vectors=vectors, depart_cycle=depart, check=check, payload=payload,
    )  # fmt: skip


def encode_control(control: Control) -> bytes:
    """Return a control message as bytes; FrameError for a value that msgpack cannot carry."""
    if not isinstance(control.kind, str) or not control.kind:
        raise FrameError(what="control kind", wanted="a text", got=repr(control.kind))
    try:
        return bytes(msgpack.packb([control.kind, dict(control.values)]))
    except (TypeError, ValueError, OverflowError) as error:
        what = f"control {control.kind!r}"
        raise FrameError(what=what, wanted="msgpack values", got=str(error)) from error


def decode_control(body: Payload) -> Control:
    """Return the control message of these bytes; FrameError when they are not one."""
    parts = _unpack("control", body)
    match parts:
        case [str() as kind, dict() as values] if kind and all(isinstance(k, str) for k in values):
            return Control(kind, values)
    raise FrameError(what="control", wanted="a kind and named values", got=repr(parts))


def _unpack(what: str, data: Payload) -> Any:
    try:
        return msgpack.unpackb(data, strict_map_key=False)
    except (TypeError, ValueError, msgpack.UnpackException) as error:
        got = f"{bytes(data)[:32]!r} ({error})"
        raise FrameError(what=what, wanted="whole msgpack", got=got) from error
