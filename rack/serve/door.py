"""The door that requests for answers come through: it counts those inside, and may be closed.

A server that drains has closed it: who comes is refused, and who is inside ends in peace. Health
checks, scrapes and what else is only looked up pass by it. All of it is on the event loop.
"""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rack.serve.errors import RETRY_STARTING_SECONDS, BusyError, busy
from rack.serve.responses import dumps


class Door:
    """Whether requests come in, and how many are inside: from the head to the answer's end."""

    def __init__(self) -> None:
        self.inside, self.closed = 0, False

    def check(self) -> None:
        """Raise BusyError once closed."""
        if self.closed:
            left = f"{self.inside} request{'' if self.inside == 1 else 's'}"
            raise BusyError(
                what=f"the server is draining: it ends after {left}, and takes no more",
                retry_seconds=RETRY_STARTING_SECONDS,
            )


class Doorway:
    """An ASGI application behind a door, through which every POST has to go."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            self._door.check()
        except BusyError as error:
            refused = busy(error)
            answer = Response(
                dumps(refused.body()), refused.status, refused.headers,
                media_type="application/json",
            )  # fmt: skip
            await answer(scope, receive, send)
            return
        self._door.inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._door.inside -= 1
