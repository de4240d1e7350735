"""Calls of functions as chat answers carry them, whole or in a stream's deltas."""

from __future__ import annotations

import random
import string
from collections.abc import Collection, Iterable
from typing import Any

from rack.text.tool_calls import Arguments, Begun, CallReader, Piece, Text

_RANDOM = random.Random()  # ids must differ and need not be secret
_ID = string.ascii_letters + string.digits


def call_id() -> str:
    """Return a new `call_` and 24 letters and digits."""
    return "call_" + "".join(_RANDOM.choices(_ID, k=24))


class Calls:
    """The text and the calls of one answer; `names` are the functions that may be called."""

    def __init__(self, names: Collection[str]) -> None:
        self._reader = CallReader(names)

    @property
    def any(self) -> bool:
        """Whether anything has been called."""
        return self._reader.calls > 0

    def message(self, texts: Iterable[str]) -> dict[str, Any]:
        """Return the message of an answer whose texts these are."""
        content, calls = "", list[dict[str, Any]]()
        for delta in [d for text in texts for d in self.deltas(text)] + self.rest():
            content += delta.get("content", "")
            for call in delta.get("tool_calls", ()):
                index, function = call.pop("index"), call["function"]
                if index == len(calls):
                    calls.append(call)
                else:
                    calls[index]["function"]["arguments"] += function["arguments"]
        message = {"role": "assistant", "content": content}
        return message | {"content": content or None, "tool_calls": calls} if calls else message

    def deltas(self, text: str) -> list[dict[str, Any]]:
        """Return what a piece of the answer adds to a stream; perhaps nothing yet."""
        return _deltas(self._reader.feed(text))

    def rest(self) -> list[dict[str, Any]]:
        """Return what was held back, at the end."""
        return _deltas(self._reader.end())


def _deltas(pieces: list[Piece]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    begun = False  # whether the last delta names a call, to which its arguments are added
    for piece in pieces:
        if isinstance(piece, Text):
            out.append({"content": piece.text})
        elif isinstance(piece, Begun):
            function = {"name": piece.name, "arguments": ""}
            call = {"index": piece.index, "id": call_id(), "type": "function", "function": function}
            out.append({"tool_calls": [call]})
        elif isinstance(piece, Arguments) and begun:
            out[-1]["tool_calls"][0]["function"]["arguments"] = piece.text
        else:
            call = {"index": piece.index, "function": {"arguments": piece.text}}
            out.append({"tool_calls": [call]})
        begun = isinstance(piece, Begun)
    return out
