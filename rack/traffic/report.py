"""What a replay gave: times, rates, promises kept, and how full the racks were.

Times are those of vLLM's benchmark. TTFT: from a request's arrival to its first token. TPOT: from
there to its last token, for each token after the first; none for an answer of one token. ITL: from
one token to the next. E2E: from arrival to the last token. Goodput: requests a second that meet
every limit of an SLO; a request that was refused meets none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from compiler.pipeline import CompiledModel
from rack.traffic.loads import Load
from rack.traffic.quantiles import PERCENTILES, Quantiles
from rack.traffic.simulation import Outcome
from rack.traffic.slo import KINDS, Slo

TIMES = {
    "ttft_ms": "time to first token", "tpot_ms": "time per output token",
    "itl_ms": "inter-token latency", "e2e_ms": "end to end", "queue_ms": "wait for a slot",
}  # fmt: skip
QUEUE_FULL = "queue_full"
TOO_LONG = "prompt_beyond_context"
CURVE = 60  # points of a load over time
BUSY = 0.9  # of the slots: near saturation
GROWTH = 1.5  # of the queue from the middle of the arrivals to their end: saturated


class Tally:
    """Takes outcomes as they come; memory does not grow with their number."""

    def __init__(self, compiled: CompiledModel, replicas: int, slos: Sequence[Slo]) -> None:
        self._hz = compiled.chip.clock_hz
        self._context = compiled.max_model_len
        self._slots, self._slos = replicas * compiled.sequences, slos
        self._times = {kind: Quantiles() for kind in TIMES}
        self._refused = {TOO_LONG: 0, QUEUE_FULL: 0}
        self._good = [Counter[str]() for _ in slos]
        self._waiting, self._running, self._tokens = Load(), Load(), Load()
        self._completed = self._prompt = self._output = 0
        self._first_arrival: int | None = None
        self._last_arrival = self._last = 0

    def take(self, outcome: Outcome) -> None:
        """Take what a request got."""
        request, arrival = outcome.request, outcome.arrival
        if self._first_arrival is None or arrival < self._first_arrival:
            self._first_arrival = arrival
        self._last_arrival = max(self._last_arrival, arrival)
        self._last = max(self._last, arrival if outcome.end is None else outcome.end)
        if outcome.end is None or outcome.first is None or outcome.admitted is None:
            long = request.prompt_tokens >= self._context
            self._refused[TOO_LONG if long else QUEUE_FULL] += 1
            return
        tokens = 1 + sum(outcome.gaps.values())
        self._completed += 1
        self._prompt += request.prompt_tokens
        self._output += tokens
        self._take_times(outcome, tokens)
        self._waiting.add(arrival, outcome.admitted, 1, 1)
        self._running.add(outcome.admitted, outcome.end, 1, 1)
        prompt = request.prompt_tokens
        self._tokens.add(outcome.admitted, outcome.first, 0, prompt)
        self._tokens.add(outcome.first, outcome.end, prompt, prompt + tokens - 1)

    def _take_times(self, outcome: Outcome, tokens: int) -> None:
        ttft, tpot, e2e = times_of(outcome)
        times = self._times
        times["ttft_ms"].add(ttft)
        times["e2e_ms"].add(e2e)
        times["queue_ms"].add((outcome.admitted or 0) - outcome.arrival)
        if tpot is not None:
            times["tpot_ms"].add(tpot)
        times["itl_ms"].add_all(outcome.gaps)
        hz = self._hz
        for slo, good in zip(self._slos, self._good, strict=True):
            met = slo.met(ttft / hz, None if tpot is None else tpot / hz, e2e / hz)
            for kind, kept in zip(KINDS, met, strict=True):
                good[kind] += kept
            good["all"] += all(met)

    def report(self) -> dict[str, Any]:
        """Return the report; times in milliseconds, rates a second. None where there is no such."""
        asked = self._completed + sum(self._refused.values())
        start = self._first_arrival or 0
        arrivals_s = (self._last_arrival - start) / self._hz
        duration_s = (self._last - start) / self._hz
        offered = (asked - 1) / arrivals_s if arrivals_s else None
        return {
            "requests": asked,
            "completed": self._completed,
            "refused": dict(self._refused),
            "prompt_tokens": self._prompt,
            "output_tokens": self._output,
            "arrivals_s": arrivals_s,
            "duration_s": duration_s,
            "offered_requests_per_s": offered,
            "requests_per_s": _rate(self._completed, duration_s),
            "output_tokens_per_s": _rate(self._output, duration_s),
            "tokens_per_s": _rate(self._prompt + self._output, duration_s),
            **{kind: self._distribution(found) for kind, found in self._times.items()},
            "slo": [
                self._attainment(slo, good, asked, duration_s)
                for slo, good in zip(self._slos, self._good, strict=True)
            ],
            "waiting": self._load(self._waiting),
            "slots": self._load(self._running, self._slots),
            "tokens_in_flight": self._load(self._tokens, self._slots * self._context),
            "saturation": self._verdict(),
        }

    def _distribution(self, found: Quantiles) -> dict[str, Any]:
        def ms(cycles: float | None) -> float | None:
            return None if cycles is None else 1000 * cycles / self._hz

        names = [f"p{percentile:g}" for percentile in PERCENTILES]
        values = map(ms, found.at(PERCENTILES))
        return {
            "mean": ms(found.mean()), **dict(zip(names, values, strict=True)),
            "exact": found.exact,
        }  # fmt: skip

    def _attainment(
        self, slo: Slo, good: Counter[str], asked: int, duration_s: float
    ) -> dict[str, Any]:
        return {
            "name": slo.name,
            "limits_s": {kind: getattr(slo, f"{kind}_s") for kind in KINDS},
            "attainment": good["all"] / asked if asked else None,
            "kept": {kind: good[kind] / asked if asked else None for kind in KINDS},
            "goodput_requests_per_s": _rate(good["all"], duration_s),
        }

    def _load(self, load: Load, capacity: int | None = None) -> dict[str, Any]:
        start, end = self._first_arrival or 0, self._last
        mean = load.area / (end - start) if end > start else 0.0
        out: dict[str, Any] = {
            "mean": mean,
            "most": load.most(),
            "most_is_a_mean_of_s": load.span_cycles / self._hz,
            "over_time": [
                {"s": at / self._hz, "mean": value} for at, value in load.curve(end, CURVE)
            ],
        }
        if capacity is not None:
            out |= {"capacity": capacity, "occupancy": mean / capacity}
        return out

    def _verdict(self) -> dict[str, Any]:
        """Say whether the racks kept up with the arrivals, and from what that is judged."""
        start, span = self._first_arrival or 0, self._last_arrival - (self._first_arrival or 0)
        middle = self._waiting.mean(start + 0.4 * span, start + 0.5 * span)
        late = self._waiting.mean(start + 0.9 * span, start + span)
        busy = self._running.mean(start, start + span) / self._slots
        if self._refused[QUEUE_FULL]:
            verdict, why = "saturated", f"{self._refused[QUEUE_FULL]:,} found the queue full"
        elif late >= self._slots and late >= GROWTH * middle:
            verdict, why = "saturated", f"the queue grew from {middle:,.1f} to {late:,.1f}"
        elif busy >= BUSY or late >= 1:
            verdict = "near saturation"
            why = f"{100 * busy:.0f} % of the slots were taken, {late:,.1f} waited at the end"
        else:
            verdict, why = "not saturated", f"{100 * busy:.0f} % of the slots were taken"
        return {
            "verdict": verdict, "why": why, "waiting_in_the_middle": middle,
            "waiting_at_the_end_of_arrivals": late, "occupancy_while_arriving": busy,
        }  # fmt: skip


def times_of(outcome: Outcome) -> tuple[int, float | None, int]:
    """Return TTFT, TPOT and E2E of a request that was completed, in cycles."""
    assert outcome.first is not None
    assert outcome.end is not None
    after = sum(outcome.gaps.values())
    tpot = (outcome.end - outcome.first) / after if after else None
    return outcome.first - outcome.arrival, tpot, outcome.end - outcome.arrival


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds else None
