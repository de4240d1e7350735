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
from dataclasses import dataclass, field, replace
from typing import Any

from rack.errors import RequestError
from rack.run.completion import TokenEvent
from rack.run.engine import check_request
from rack.serve.dispatch import Dispatcher
from rack.serve.door import Door
from rack.serve.errors import ApiError, BusyError, GoneError, busy, failed
from rack.serve.grammars import Grammars
from rack.serve.identity import Identity
from rack.serve.limits import Limiter, Reservation
from rack.serve.metrics import Meter, Metrics
from rack.serve.reader import Reader
from rack.serve.reading import Parse, read_prompts
from rack.serve.responses import DONE, Answer, emulated_cycles, event
from rack.serve.runner import Event, Failed, Finished, QueuedRequest, together
from rack.serve.schemas import Parsed
from rack.text.grammar import Grammar, json_grammar, narrowed, without_doubles
from rack.text.tools import Tools, form_of

RESPONSE_FORMAT = "response_format"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What the routes work with."""

    identity: Identity
    racks: Dispatcher
    limiter: Limiter
    metrics: Metrics
    grammars: Grammars
    reader: Reader
    door: Door = field(default_factory=Door)

    def check_running(self) -> list[str]:
        """Return the state of each rack. Raise BusyError where none is ready, or we drain."""
        self.door.check()
        return self.racks.check_running()

    def close(self) -> None:
        """End the processes that read requests and judge schemas. Harmless when repeated."""
        self.reader.close()
        self.grammars.close()

    async def read(self, parse: Parse, body: bytes) -> tuple[Parsed, Sequence[Sequence[int]]]:
        """Read a request for a completion, and its prompts as ids. Raises ApiError."""
        parsed, prompts = await self.reader.run(read_prompts, body, parse)
        self.identity.check_model(parsed.model)
        return parsed, prompts

    async def hold(self, parsed: Parsed) -> Parsed:
        """Settle what the answer is held to, and see that it can be. Raises ApiError.

        Where no model chooses the words, functions on offer are called, but not when the length of
        the answer is given, nor right after a result: agents would never come to an end.
        """
        random, tools = self.identity.random_tokens, parsed.tools
        free = parsed.params.min_tokens or parsed.params.ignore_eos or _ends_with_result(parsed)
        called = tools is not None and (tools.required or (random and not free))
        if not called and parsed.schema is None:
            return parsed
        try:
            grammar = await asyncio.to_thread(self._grammar, tools if called else None, parsed)
            params = replace(parsed.params, grammar=grammar)
            await self.grammars.check(grammar)
        except RequestError as error:
            raise ApiError(400, str(error), param=error.param) from None
        return replace(parsed, params=params)

    def _grammar(self, tools: Tools | None, parsed: Parsed) -> Grammar:
        random = self.identity.random_tokens
        if tools is not None:
            return tools.grammar(form_of(self.identity.prepared.tokenizer.template), random=random)
        schema = parsed.schema or {}
        return json_grammar(
            without_doubles(narrowed(schema)) if random else schema, RESPONSE_FORMAT
        )

    def admit(
        self, parsed: Parsed, prompts: Sequence[Sequence[int]], key: str, arrived_seconds: float
    ) -> tuple[Ticket, ...]:
        """Check a request for a model of ours against its key's limits, and queue its prompts.

        `arrived_seconds` is by `time.perf_counter`. Raises ApiError.
        """
        prepared, tickets = self.identity.prepared, list[Ticket]()
        lists = [list(prompt) for prompt in prompts]
        try:
            for prompt in lists:
                check_request(
                    prepared.compiled, prepared.tokenizer, prompt, parsed.params,
                    executor=prepared.config.executor,
                )  # fmt: skip
        except RequestError as error:
            raise ApiError(400, str(error), param=error.param) from None
        try:
            for prompt in lists:
                tickets.append(self._ticket(parsed, prompt, key, arrived_seconds))
        except ApiError:
            for ticket in tickets:
                ticket.close()
            raise
        return tuple(tickets)

    def _ticket(
        self, parsed: Parsed, prompt: list[int], key: str, arrived_seconds: float
    ) -> Ticket:
        asked = len(prompt) + (parsed.params.max_tokens or 0)
        reservation = self.limiter.reserve(key, parsed.model, asked)
        try:
            return Ticket(self, parsed, prompt, reservation, arrived_seconds)
        except BusyError as error:
            reservation.settle(None)
            raise busy(error) from None


def _ends_with_result(parsed: Parsed) -> bool:
    return any(message["role"] == "tool" for message in (parsed.messages or ())[-1:])


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
        self._gone = self._closed = self._woken = False
        self._failure: Exception | None = None
        self._job = QueuedRequest(prompt, parsed.params, self._put, arrived_seconds)
        self._rack = service.racks.submit(self._job)

    def _put(self, event: Event) -> None:
        """Take an event, in the rack's thread."""
        ended = not isinstance(event, TokenEvent)
        if isinstance(event, TokenEvent):
            if not self.meter.stamps and (cached := self._job.cached_tokens):
                self._loop.call_soon_threadsafe(self._reservation.give_back, cached)
            self.meter.token(event)
        self._events.append((event, self._job.promised_seconds))
        if (ended or self._each) and not self._woken:  # once for all that it has not seen yet
            self._woken = True
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
            self._woken = False
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
            used = made + (meter.prompt_tokens - self._job.cached_tokens if made else 0)
            self._reservation.settle(None if reason == "error" else used)
            self._service.metrics.observe(meter, reason)
        return {
            "prompt_tokens": meter.prompt_tokens,
            "completion_tokens": made,
            "finish_reason": reason,
            "emulated_cycles": None if totals is None else emulated_cycles(totals),
        }


def closed(tickets: Sequence[Ticket]) -> dict[str, Any]:
    """Close all tickets of a request; return what its log line should say."""
    first, *others = [ticket.close() for ticket in tickets]
    for one in others:
        for name in ("prompt_tokens", "completion_tokens"):
            first[name] += one[name]
        if first["finish_reason"] not in ("error", "abort"):
            first["finish_reason"] = one["finish_reason"]
        cycles = first["emulated_cycles"], one["emulated_cycles"]
        first["emulated_cycles"] = None
        if None not in cycles:
            queue = {"queue": min(part["queue"] for part in cycles)}
            first["emulated_cycles"] = {n: sum(c[n] for c in cycles) for n in cycles[0]} | queue
    return first


def _answer_to(error: Exception) -> ApiError:
    if isinstance(error, RequestError):  # found only once it ran; the rack is well
        return ApiError(400, str(error), param=error.param)
    return busy(error) if isinstance(error, BusyError) else failed(error)


async def collect(ticket: Ticket) -> tuple[list[str], Finished]:
    """Wait for a whole answer, piece by piece as it was made. Raises ApiError and GoneError."""
    pieces: list[str] = []
    while True:
        for now in await ticket.events():
            if isinstance(now, Finished):
                return pieces, now
            pieces.append(now.text)


async def stream(
    ready: list[TokenEvent | Finished], tickets: Sequence[Ticket], answer: Answer
) -> AsyncIterator[bytes]:
    """Give the server-sent events of an answer whose first events are `ready`.

    One chunk a token, so that clients can time tokens, but none for a token of which nothing can
    be said yet; the role chunk goes with the first. Several prompts come one after the other. A
    failure is an event with a top-level `error`, and the stream ends without [DONE].
    Raises GoneError.
    """
    role, ended = answer.role_chunk(), list[Finished]()
    parts = [] if role is None else [event(role)]
    for index, ticket in enumerate(tickets):
        one, made, totals = replace(answer, index=index), 0, None
        while totals is None:
            for now in ready:
                if isinstance(now, Finished):
                    totals = now
                    break
                made += 1
                if now.text or now.finish_reason is None:
                    parts.append(one.text_event(now.text, made))
            if totals is None:
                if any(parts):
                    yield b"".join(parts)
                try:
                    parts, ready = [], await ticket.events()
                except ApiError as error:
                    yield event(error.body())
                    return
        ended.append(totals)
        last = index + 1 == len(tickets)
        total = together(ended) if last else None
        parts += [one.rest(made), event(one.last_chunk(totals, total))]
        ready = []
    if answer.parsed.include_usage:
        parts.append(event(answer.usage_chunk(together(ended))))
    yield b"".join((*parts, DONE))
