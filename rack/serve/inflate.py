"""Compressed bodies: gzip, unpacked up to the limit of a body.

A small body can unpack to any size, so unpacking stops at the limit. Other encodings are refused.
"""

from __future__ import annotations

import zlib

from rack.serve.errors import ApiError

_GZIP = 16 + zlib.MAX_WBITS  # zlib's way to say: with gzip's head and check
_NAMES = {"": False, "identity": False, "gzip": True, "x-gzip": True}


def unpack(body: bytes, encoding: str | None, limit: int) -> bytes:
    """Return a body without its content encoding. Raises ApiError: 400, 413 or 415."""
    name = (encoding or "").strip().lower()
    if name not in _NAMES:
        raise ApiError(
            415, f"Content-Encoding `{encoding}`: wanted gzip or identity",
            code="unsupported_content_encoding", headers={"accept-encoding": "gzip, identity"},
        )  # fmt: skip
    if not _NAMES[name]:
        return body
    try:
        return _gunzip(body, limit)
    except zlib.error as error:
        raise ApiError(400, f"the body is not valid gzip: {error}") from None


def _gunzip(body: bytes, limit: int) -> bytes:
    """Unpack all members of a gzip file."""
    out = b""
    while True:
        member = zlib.decompressobj(_GZIP)
        out += member.decompress(body, limit + 1 - len(out))
        if len(out) > limit:
            raise too_large(limit)
        if not member.eof:
            raise zlib.error("it ends too early")
        body = member.unused_data
        if not body:
            return out


def too_large(limit: int) -> ApiError:
    """Return the 413 for a body that is larger than `limit`, as sent or unpacked."""
    return ApiError(413, f"the body is larger than {limit} bytes", code="request_too_large")
