"""Browsers: which pages may use the server, and which headers of an answer they may read."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from rack.serve.limits import HEADERS

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s,]+", re.IGNORECASE)


def parse_origins(text: str) -> tuple[str, ...]:
    """Read `--allowed-origins`: origins between commas, or `*`. Raises ArgumentTypeError."""
    origins = tuple(one.strip() for one in text.split(","))
    for one in origins:
        if one != "*" and not _ORIGIN.fullmatch(one):
            raise argparse.ArgumentTypeError(
                f"wanted origins such as https://example.org, or *, got {one!r}"
            )
    return origins


def cross_origin(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Let pages of these origins use an application."""
    return CORSMiddleware(
        app, allow_origins=origins, allow_methods=("GET", "POST"), allow_headers=("*",),
        expose_headers=("x-request-id", "retry-after", *HEADERS),
    )  # fmt: skip
