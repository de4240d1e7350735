"""Errors of the server, and the bodies of refusals as the SDKs read them.

RackError
├── ApiError      a request is refused: the status and the four fields of the body
├── ListenError   the address to serve on cannot be had
├── BusyError     a request the rack cannot take: starting, stopping, or the queue is full
├── GoneError     a request's client left before the end
└── StoppedError  the rack was asked to stop while it started
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from rack.errors import RackError

INVALID = "invalid_request_error"
RETRY_STARTING_SECONDS = 5
RETRY_QUEUE_SECONDS = 1


MOST_SAID = 1000


def _short(text: str) -> str:
    """Cut what quotes a client at length."""
    return text if len(text) <= MOST_SAID else text[:MOST_SAID] + "…"


class ApiError(RackError):
    """A request refused: HTTP status, and message, type, code, param of the body."""

    def __init__(
        self, status: int, message: str, *, kind: str = INVALID, code: str | None = None,
        param: str | None = None, headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.status, self.message, self.kind = status, _short(message), kind
        self.code, self.headers = code, dict(headers or {})
        self.param = None if param is None else _short(param)
        super().__init__(self.message)

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        error = {
            "message": self.message, "type": self.kind, "code": self.code, "param": self.param,
        }  # fmt: skip
        return {"error": error}


class ListenError(RackError):
    """The address to serve on cannot be had."""

    def __init__(self, *, host: str, port: int, why: str) -> None:
        self.host, self.port, self.why = host, port, why
        super().__init__(f"cannot listen on {host} port {port}: {why}; choose another --port")


class BusyError(RackError):
    """The rack takes no request now; worth trying again."""

    def __init__(self, *, what: str, retry_seconds: int) -> None:
        self.what, self.retry_seconds = what, retry_seconds
        super().__init__(what)


class GoneError(RackError):
    """A request's client left before the end."""


class StoppedError(RackError):
    """The rack was asked to stop while it started."""


def refuse(param: str, why: str) -> NoReturn:
    """Refuse a request for one of its parameters. Raises ApiError (400)."""
    raise ApiError(400, f"{param}: {why}", param=param)


def starting(stage: str) -> BusyError:
    """Return why no rack takes a request: what it is being prepared by."""
    return BusyError(what=f"the rack is not ready ({stage})", retry_seconds=RETRY_STARTING_SECONDS)


def busy(error: BusyError) -> ApiError:
    """Return the 503 for a rack that takes no request now; the SDKs honour retry-after."""
    return ApiError(
        503, str(error), kind="service_unavailable", code="service_unavailable",
        headers={"retry-after": str(error.retry_seconds)},
    )  # fmt: skip


def failed(error: BaseException) -> ApiError:
    """Return the 500 for a request whose step failed."""
    return ApiError(
        500, f"{type(error).__name__}: {error}", kind="internal_server_error",
        code="rack_failed",
    )  # fmt: skip
