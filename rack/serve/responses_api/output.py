"""The output items of an answer as they come: messages with its text, and calls of functions.

A change is the type of a stream's event and its fields; who wants the answer whole lets them pass
and takes the items in the end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from rack.serve.calls import call_id
from rack.serve.responses import new_id
from rack.text.tool_calls import Arguments, Begun, CallReader, Piece, Text

Change = tuple[str, dict[str, Any]]


class Output:
    """The items of one answer; `names` are the functions that may be called, if any may.

    The last item is open until what follows it comes, or the end.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._reader = None if names is None else CallReader(names)
        self._items: list[dict[str, Any]] = []
        self._pieces: list[str] = []  # of the open item: its text, or its arguments
        self._open: str | None = None  # the open item's type

    @property
    def items(self) -> list[dict[str, Any]]:
        """The items so far."""
        return [*self._items[:-1], self._last()] if self._open else self._items

    def take(self, text: str) -> Iterator[Change]:
        """Take what the model wrote next; return what changes, perhaps nothing yet."""
        for piece in [Text(text)] if self._reader is None else self._reader.feed(text):
            yield from self.add(piece)

    def add(self, piece: Piece) -> Iterator[Change]:
        """Take a piece of text, or of a call."""
        match piece:
            case Text(text):
                if self._open != "message":
                    yield from self._begin_message()
                yield "response.output_text.delta", self._said(text) | {"logprobs": []}
            case Begun(name=name):
                yield from self._begin_call(name)
            case Arguments(text=text):
                yield "response.function_call_arguments.delta", self._said(text)

    def end(self, status: str) -> Iterator[Change]:
        """Take the end: `completed`, or `incomplete` where the answer is cut off."""
        for piece in () if self._reader is None else self._reader.end():
            yield from self.add(piece)
        if not self._items:
            yield from self._begin_message()
        yield from self._close(status)

    def _begin_message(self) -> Iterator[Change]:
        yield from self._close("completed")
        item = {"id": new_id("msg"), "type": "message", "role": "assistant", "content": []}
        yield self._begin(item)
        yield "response.content_part.added", self._place() | {"part": _part("")}

    def _begin_call(self, name: str) -> Iterator[Change]:
        yield from self._close("completed")
        call = {"id": new_id("fc"), "type": "function_call", "call_id": call_id()}
        yield self._begin(call | {"name": name, "arguments": ""})

    def _begin(self, item: dict[str, Any]) -> Change:
        self._items.append(item | {"status": "in_progress"})
        self._pieces, self._open = [], item["type"]
        added = {"output_index": len(self._items) - 1, "item": self._items[-1]}
        return "response.output_item.added", added

    def _said(self, text: str) -> dict[str, Any]:
        self._pieces.append(text)
        return self._place() | {"delta": text}

    def _place(self) -> dict[str, Any]:
        place = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        return place | {"content_index": 0} if self._open == "message" else place

    def _last(self, status: str = "incomplete") -> dict[str, Any]:
        """Return the open item with what it has."""
        said = "".join(self._pieces)
        filled = {"content": [_part(said)]} if self._open == "message" else {"arguments": said}
        return self._items[-1] | filled | {"status": status}

    def _close(self, status: str) -> Iterator[Change]:
        if self._open is None:
            return
        item, place, said = self._last(status), self._place(), "".join(self._pieces)
        if self._open == "message":
            yield "response.output_text.done", place | {"text": said, "logprobs": []}
            yield "response.content_part.done", place | {"part": _part(said)}
        else:
            done = place | {"name": item["name"], "arguments": said}
            yield "response.function_call_arguments.done", done
        yield "response.output_item.done", {"output_index": place["output_index"], "item": item}
        self._items[-1], self._open = item, None


def _part(text: str) -> dict[str, Any]:
    """Return the part of a message with its text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
