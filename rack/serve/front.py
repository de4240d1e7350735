"""The start-up handler: answers until the application is there, then hands every request on.

The address is taken before the model is compiled. Until the application is there, `/health` is
200 and everything else is 503 with the stage and `retry-after`, so that clients and orchestrators
know what they wait for.
"""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rack.serve.envelope import call_of, plain_path
from rack.serve.errors import busy, starting
from rack.serve.logs import RequestLog
from rack.serve.responses import dumps


class Front:
    """An ASGI application that waits for the real one; `stage` says what is going on."""

    def __init__(self, log: RequestLog) -> None:
        self._log = log
        self._app: ASGIApp | None = None
        self.stage = "starting"

    def hand_on(self, app: ASGIApp) -> None:
        """Give every request from now on to an application; callable from any thread."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is not None:
            await self._app(scope, receive, send)
            return
        call = call_of(scope)
        answer = self._answer(plain_path(call.path))
        answer.headers["x-request-id"] = call.request_id
        call.status = answer.status_code
        try:
            await answer(scope, receive, send)
        finally:
            self._log.write(call)

    def _answer(self, path: str) -> Response:
        if path == "/health":
            return Response(dumps({"status": "ok"}), media_type="application/json")
        refused = busy(starting(self.stage))
        return Response(
            dumps(refused.body()), refused.status, refused.headers, media_type="application/json"
        )
