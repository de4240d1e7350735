"""One request of a trace."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request: when it arrives, and how many tokens it has and gets.

    With `after`, it arrives `delay_s` after the end of that request, not at `arrival_s`.
    """

    number: int
    id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    session: str | None = None
    after: int | None = None  # number of the request that it follows
    delay_s: float = 0.0
