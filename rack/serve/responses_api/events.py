"""The stream of POST /responses: server-sent events, numbered, as the openai SDK reads them.

As a chat's, a stream begins when its first token is there, so that what fails before is answered
with a status of its own; a token is a delta. A failure in mid-stream is `response.failed` and then
`error`, whose top-level `error` the SDKs raise. There is no [DONE]: the last event says the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from rack.run.completion import TokenEvent
from rack.serve.errors import ApiError
from rack.serve.responses import dumps
from rack.serve.responses_api.objects import Reply, status_of
from rack.serve.responses_api.output import Change, Output
from rack.serve.responses_api.parse import as_sent
from rack.serve.runner import Finished
from rack.serve.service import Ticket


async def stream(
    ready: list[TokenEvent | Finished], tickets: Sequence[Ticket], reply: Reply
) -> AsyncIterator[bytes]:
    """Give the events of an answer whose first ones are `ready`. Raises GoneError."""
    write, output, (ticket,) = _Writer(), reply.output(), tickets
    begun = {"response": reply.begun()}
    parts = [write.event("response.created", begun), write.event("response.in_progress", begun)]
    while True:
        for now in ready:
            if isinstance(now, Finished):
                parts += write.events(output.end(status_of(now)))
                ended = reply.ended(output.items, now)
                parts.append(write.event(f"response.{ended['status']}", {"response": ended}))
                yield b"".join(parts)
                return
            if now.text or now.finish_reason is None:
                parts += write.events(output.take(now.text))
        if parts:
            yield b"".join(parts)
        try:
            parts, ready = [], await ticket.events()
        except ApiError as error:
            yield b"".join(_failed(write, output, reply, as_sent(error)))
            return


def _failed(write: _Writer, output: Output, reply: Reply, error: ApiError) -> list[bytes]:
    """Return what ends a stream that failed."""
    told = {"code": error.code, "message": error.message, "param": error.param} | error.body()
    failed = {"response": reply.failed(output.items, error)}
    return [write.event("response.failed", failed), write.event("error", told)]


class _Writer:
    """Writes the events of one stream, and numbers them."""

    def __init__(self) -> None:
        self._number = 0

    def event(self, kind: str, fields: dict[str, Any]) -> bytes:
        data = dumps({"type": kind, "sequence_number": self._number} | fields)
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode("ascii"), data)

    def events(self, changes: Iterable[Change]) -> list[bytes]:
        return [self.event(kind, fields) for kind, fields in changes]
