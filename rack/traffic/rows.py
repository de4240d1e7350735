"""Requests as rows of CSV, in the order in which they ended."""

from __future__ import annotations

import csv
import io
from typing import BinaryIO

from rack.traffic.report import times_of
from rack.traffic.simulation import Outcome

COLUMNS = (
    "rate_scale", "number", "id", "session", "replica", "prompt_tokens", "output_tokens", "refused",
    "arrival_s", "queue_s", "ttft_s", "tpot_s", "e2e_s", "arrival_cycles", "admitted_cycles",
    "first_token_cycles", "end_cycles",
)  # fmt: skip


class Rows:
    """Writes rows to a file; the first has the columns' names."""

    def __init__(self, file: BinaryIO, clock_hz: float) -> None:
        self._file, self._hz = file, clock_hz

    def head(self) -> None:
        """Write the columns' names."""
        self._write(COLUMNS)

    def add(self, outcome: Outcome, scale: float) -> None:
        """Write a request. What one that was refused does not have is empty."""
        request, hz = outcome.request, self._hz
        queue = ttft = tpot = e2e = None
        if outcome.end is not None and outcome.admitted is not None:
            queue = (outcome.admitted - outcome.arrival) / hz
            ttft, tpot, e2e = (
                None if cycles is None else cycles / hz for cycles in times_of(outcome)
            )
        self._write((
            scale, request.number, request.id, request.session, outcome.replica,
            request.prompt_tokens, request.output_tokens, outcome.refused, outcome.arrival / hz,
            queue, ttft, tpot, e2e, outcome.arrival, outcome.admitted, outcome.first, outcome.end,
        ))  # fmt: skip

    def _write(self, values: tuple[object, ...]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        self._file.write(text.getvalue().encode("utf-8", "backslashreplace"))
