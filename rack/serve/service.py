"""From a checked request to events, without a web framework: admitting, waiting, accounting.

A `Ticket` is one request on a rack as the event loop sees it. Whoever holds one must `close` it
in the end, whatever happened: that frees the rack when a client goes away, settles its rate limits
and counts it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rack.engine import TokenEvent, check_request
from rack.errors import RequestError
from rack.serve.dispatch import Dispatcher
from rack.serve.errors import ApiError, BusyError, GoneError, busy, failed
from rack.serve.identity import Identity
from rack.serve.limits import Limiter, Reservation
from rack.serve.metrics import Meter, Metrics
from rack.serve.reader import Reader
from rack.serve.reading import Parse, read_prompt
from rack.serve.responses import DONE, Answer, emulated_cycles, event
from rack.serve.runner import Event, Failed, Finished, Job
from rack.serve.schemas import Parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What the routes work with."""

    identity: Identity
    racks: Dispatcher
    limiter: Limiter
    metrics: Metrics
    reader: Reader

    async def read(self, parse: Parse, body: bytes) -> tuple[Parsed, list[int]]:
        """Read and check a request for a completion. Raises ApiError."""
        parsed, ids = await self.reader.run(read_prompt, body, parse)
        self.identity.check_model(parsed.model)
        prepared, prompt = self.identity.prepared, list(ids)
        try:
            check_request(
                prepared.compiled, prepared.tokenizer, prompt, parsed.params,
                executor=prepared.config.executor,
            )  # fmt: skip
        except RequestError as error:
            raise ApiError(400, str(error), param=error.param) from None
        return parsed, prompt

    def admit(
        self, parsed: Parsed, prompt: Sequence[int], key: str, arrived_seconds: float
    ) -> Ticket:
        """Check a request for a model of ours against its key's limits, and queue it.

        `arrived_seconds` is by `time.perf_counter`. Raises ApiError.
        """
        asked = len(prompt) + (parsed.params.max_tokens or 0)
        reservation = self.limiter.reserve(key, parsed.model, asked)
        try:
            return Ticket(self, parsed, prompt, reservation, arrived_seconds)
        except BusyError as error:
            reservation.settle(None)
            raise busy(error) from None


class Ticket:
    """A queued or running request; made on the event loop that reads it. Raises BusyError."""

    def __init__(
        self, service: Service, parsed: Parsed, prompt: Sequence[int], reservation: Reservation,
        arrived_seconds: float,
    ) -> None:  # fmt: skip
        self.meter = Meter(len(prompt), arrived_seconds)
        self._service, self._reservation = service, reservation
        self._each = parsed.stream  # else only the end wakes the event loop
        self._loop = asyncio.get_running_loop()
        self._events: deque[tuple[Event, float | None]] = deque()  # and when each was due
        self._arrived = asyncio.Event()
        self._gone = self._closed = False
        self._failure: Exception | None = None
        self._job = Job(prompt, parsed.params, self._put, arrived_seconds)
        self._rack = service.racks.submit(self._job)

    def _put(self, event: Event) -> None:
        """Take an event, in the rack's thread."""
        ended = not isinstance(event, TokenEvent)
        if isinstance(event, TokenEvent):
            self.meter.token(event)
        self._events.append((event, self._job.promised_seconds))
        if ended or self._each:
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def events(self) -> list[TokenEvent | Finished]:
        """Wait for events and return all that are there.

        Raises ApiError where the request failed (500, or 503 when the server stops), once the
        events before that have been returned, and GoneError when its client has left.
        """
        out: list[TokenEvent | Finished] = []
        while not out:
            if self._gone:
                raise GoneError("the client has left")
            if self._failure is not None:
                raise _answer_to(self._failure)
            while self._events:
                event, due = self._events.popleft()
                if due is not None and (self._each or isinstance(event, Finished)):
                    self.meter.late(time.perf_counter() - due)
                if isinstance(event, Failed):
                    self._failure = event.error
                    break
                if isinstance(event, Finished):
                    event = self.meter.totals = replace(event, slip=self.meter.slip)
                out.append(event)
            if not out and self._failure is None:
                self._arrived.clear()
                await self._arrived.wait()
        return out

    def leave(self) -> None:
        """Tell whoever waits for events that the client has left; on the event loop."""
        self._gone = True
        self._arrived.set()

    def close(self) -> dict[str, Any]:
        """Free the rack before its next step, settle, count; return what a log line should say.

        Harmless when repeated.
        """
        self._rack.cancel(self._job)
        meter, totals = self.meter, self.meter.totals
        made = len(meter.stamps)
        if self._failure is not None:
            reason = "error"
        else:
            reason = "abort" if totals is None else totals.finish_reason
        if not self._closed:
            self._closed = True
            used = made + (meter.prompt_tokens if made else 0)
            self._reservation.settle(None if reason == "error" else used)
            self._service.metrics.observe(meter, reason)
        return {
            "prompt_tokens": meter.prompt_tokens,
            "completion_tokens": made,
            "finish_reason": reason,
            "emulated_cycles": None if totals is None else emulated_cycles(totals),
        }


def _answer_to(error: Exception) -> ApiError:
    if isinstance(error, RequestError):  # found only once it ran; the rack is well
        return ApiError(400, str(error), param=error.param)
    return busy(error) if isinstance(error, BusyError) else failed(error)


async def collect(ticket: Ticket) -> tuple[str, Finished]:
    """Wait for a whole answer. Raises ApiError and GoneError."""
    pieces: list[str] = []
    while True:
        for now in await ticket.events():
            if isinstance(now, Finished):
                return "".join(pieces), now
            pieces.append(now.text)


async def stream(
    ready: list[TokenEvent | Finished], ticket: Ticket, answer: Answer
) -> AsyncIterator[bytes]:
    """Give the server-sent events of an answer whose first events are `ready`.

    One chunk a token, so that clients can time tokens; the role chunk goes with the first. A
    failure is an event with a top-level `error`, and the stream ends without [DONE].
    Raises GoneError.
    """
    made, role = 0, answer.role_chunk()
    parts = [] if role is None else [event(role)]
    while True:
        for now in ready:
            if isinstance(now, Finished):
                parts.append(event(answer.last_chunk(now)))
                if answer.parsed.include_usage:
                    parts.append(event(answer.usage_chunk(now)))
                yield b"".join((*parts, DONE))
                return
            made += 1
            if now.text or now.finish_reason is None:
                parts.append(answer.text_event(now.text, made))
        yield b"".join(parts)
        try:
            parts, ready = [], await ticket.events()
        except ApiError as error:
            yield event(error.body())
            return
