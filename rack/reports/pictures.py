"""Kinds of picture that verbs write."""

from __future__ import annotations

from pathlib import Path

from rack.errors import ConfigError

PICTURES = ("png", "svg", "pdf")


def picture_kind(path: str) -> str:
    """Return what a picture's name says it is, png without an end. Raises ConfigError."""
    kind = Path(path).suffix.lower().removeprefix(".") or PICTURES[0]
    if kind not in PICTURES:
        raise ConfigError(
            f"{path}: wanted a picture to write, got a name that ends in .{kind}; known: "
            f"{', '.join(PICTURES)}"
        )
    return kind
