"""Prometheus metrics: vLLM's names for wall time, the same under `rack:` for emulated time.

A request is measured where its events leave the rack's thread, and counted when it ends. As vLLM
has it, prefill lasts from a request's start to its first token and decode from there to its last;
`inter_token_latency` and `time_per_output_token` are every gap between two tokens, and
`request_time_per_output_token` a request's mean gap, decode / (tokens - 1), 0 for one token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from rack.run.completion import TokenEvent
from rack.run.steps import Recovery
from rack.serve.dispatch import Dispatcher
from rack.serve.identity import Identity
from rack.serve.pacing import SLIP_SECONDS, Slip
from rack.serve.runner import Finished

CONTENT_TYPE = CONTENT_TYPE_LATEST
_STEPS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)


def _buckets(first_exponent: int, decades: int) -> tuple[float, ...]:
    """Return eight buckets a decade, starting at 10 ** first_exponent."""
    scales = (10.0 ** (first_exponent + decade) for decade in range(decades))
    return (*(round(step * scale, 9) for scale in scales for step in _STEPS),)


# vLLM's own, so that its dashboards fit.
_WALL_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_WALL_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 40)
_WALL_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)
# An LPU's token takes well under a millisecond.
_RACK_TOKEN = _buckets(-5, 4)  # 10 us to 80 ms
_RACK_REQUEST = _buckets(-4, 6)  # 100 us to 80 s
_COUNTS = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))

_TIMES = (
    ("time_to_first_token", "Arrival to first token", _WALL_FIRST, _RACK_REQUEST),
    ("inter_token_latency", "Gap between two tokens", _WALL_TOKEN, _RACK_TOKEN),
    ("time_per_output_token", "Gap between two tokens", _WALL_TOKEN, _RACK_TOKEN),
    (
        "request_time_per_output_token",
        "A request's mean gap between tokens",
        _WALL_TOKEN,
        _RACK_TOKEN,
    ),
    ("e2e_request_latency", "Arrival to last token", _WALL_REQUEST, _RACK_REQUEST),
    ("request_queue_time", "Arrival to start", _WALL_REQUEST, _RACK_REQUEST),
    ("request_prefill_time", "Start to first token", _WALL_REQUEST, _RACK_REQUEST),
    ("request_decode_time", "First token to last", _WALL_REQUEST, _RACK_REQUEST),
)


class _Times:
    """The histograms of one clock."""

    def __init__(self, prefix: str, registry: CollectorRegistry, model: str) -> None:
        wall = prefix == "vllm"
        clock = "wall" if wall else "emulated"
        self._of = {
            name: Histogram(
                f"{prefix}:{name}_seconds", f"{text}, {clock} time", ["model_name"],
                registry=registry, buckets=wall_buckets if wall else rack_buckets,
            ).labels(model)
            for name, text, wall_buckets, rack_buckets in _TIMES
        }  # fmt: skip

    def observe(self, queue: float, first: float, gaps: Sequence[float]) -> None:
        """Take a request: seconds from arrival to start, from start to first token, and after."""
        of, decode = self._of, sum(gaps)
        of["time_to_first_token"].observe(queue + first)
        for gap in gaps:
            of["inter_token_latency"].observe(gap)
            of["time_per_output_token"].observe(gap)
        of["request_time_per_output_token"].observe(decode / len(gaps) if gaps else 0.0)
        of["e2e_request_latency"].observe(queue + first + decode)
        of["request_queue_time"].observe(queue)
        of["request_prefill_time"].observe(first)
        of["request_decode_time"].observe(decode)


class _LinkCounts(Collector):
    """What the code of the links has corrected; a sample only where a link makes errors."""

    def __init__(self, racks: Dispatcher, model: str) -> None:
        self._racks, self._model = racks, model

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the counters, of each rack and link."""
        family = CounterMetricFamily(
            "rack:link_corrected_vectors", "Vectors that came with a wrong bit and were corrected",
            labels=["model_name", "rack", "link"],
        )  # fmt: skip
        for number, runner in enumerate(self._racks.runners):
            for link, count in sorted(runner.corrected.items()):
                family.add_metric([self._model, str(number), link], count)
        yield family


class Metrics:
    """All metrics of one server. `say` is told, once, that pace is being lost."""

    def __init__(
        self, identity: Identity, racks: Dispatcher, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._say, self._said = say, False
        self._registry = registry = CollectorRegistry()
        self._clock_hz = identity.prepared.compiled.chip.clock_hz
        model = identity.names[0]
        self._wall = _Times("vllm", registry, model)
        self._rack = _Times("rack", registry, model)
        compiled, self._reuse = identity.prepared.compiled, identity.prefix_cache
        slots = compiled.sequences * len(racks.runners)
        context = compiled.max_model_len * slots
        for name, text, value in (
            ("vllm:num_requests_running", "Requests in a slot of a rack", lambda: racks.running),
            ("vllm:num_requests_waiting", "Requests that wait for a slot", lambda: racks.waiting),
            ("vllm:kv_cache_usage_perc", "Part of the KV cache in use; 1 is all of it",
             lambda: sum(runner.kv_tokens for runner in racks.runners) / context),
            ("rack:slots", "Sequence slots of all racks", lambda: slots),
            ("rack:slot_usage_perc", "Part of the slots in use; 1 is all of them",
             lambda: racks.running / slots),
            ("rack:spares", "Chips of all racks that can still be replaced",
             lambda: sum(runner.spares for runner in racks.runners)),
        ):  # fmt: skip
            gauge = Gauge(name, text, ["model_name"], registry=registry)
            gauge.labels(model).set_function(value)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, ["model_name"], registry=registry).labels(model)

        def sizes(name: str, text: str) -> Histogram:
            histogram = Histogram(
                f"vllm:{name}", text, ["model_name"], registry=registry, buckets=_COUNTS
            )
            return histogram.labels(model)

        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens")
        self._generation_tokens = counter("generation_tokens", "Tokens made")
        self._looked_up = counter(
            "prefix_cache_queries", "Prompt tokens that were looked for in the prefix cache"
        )
        self._found = counter(
            "prefix_cache_hits", "Prompt tokens that were found in the prefix cache"
        )
        self._prompt_sizes = sizes("request_prompt_tokens", "Prompt tokens of a request")
        self._generation_sizes = sizes("request_generation_tokens", "Tokens made for a request")
        success = Counter(
            "vllm:request_success", "Requests that ended", ["model_name", "finished_reason"],
            registry=registry,
        )  # fmt: skip
        self._ended = {
            reason: success.labels(model, reason) for reason in ("stop", "length", "abort", "error")
        }

        late = "came later than emulated time says, in seconds"
        self._slipped = Counter(
            "rack:pace_slipped_seconds", f"How much answers {late}: the sum over all",
            ["model_name"], registry=registry,
        ).labels(model)  # fmt: skip
        self._worst = Gauge(
            "rack:pace_slipped_worst_seconds", f"How much a token {late}: the most ever",
            ["model_name"], registry=registry,
        ).labels(model)  # fmt: skip
        self._worst_seconds = 0.0
        registry.register(_LinkCounts(racks, model))
        self._recoveries = Counter(
            "rack:recoveries", "Faults after which a rack went on", ["model_name"],
            registry=registry,
        ).labels(model)  # fmt: skip
        self._replayed = Counter(
            "rack:replayed_cycles", "Emulated cycles that were run again after faults",
            ["model_name"], registry=registry,
        ).labels(model)  # fmt: skip
        self._http = Counter(
            "http_requests", "HTTP requests by path, method and class of status",
            ["handler", "method", "status"], registry=registry,
        )  # fmt: skip

    def expose(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def observe(self, meter: Meter, reason: str) -> None:
        """Count a request that has ended: stop, length, abort (its client left) or error."""
        self._ended[reason].inc()
        if meter.slip is not None:
            self._lost(meter.slip)
        stamps, cycles, totals = meter.stamps, meter.cycles, meter.totals
        if stamps:
            self._prompt_tokens.inc(meter.prompt_tokens)
            self._generation_tokens.inc(len(stamps))
        if not stamps or totals is None:
            return
        if self._reuse:
            self._looked_up.inc(meter.prompt_tokens)
            self._found.inc(totals.cached_tokens)
        self._prompt_sizes.observe(meter.prompt_tokens)
        self._generation_sizes.observe(len(stamps))
        start = meter.arrived_seconds + totals.wall_queue_seconds
        gaps = [later - earlier for earlier, later in pairwise(stamps)]
        self._wall.observe(totals.wall_queue_seconds, stamps[0] - start, gaps)
        hz = self._clock_hz
        first, *rest = (count / hz for count in cycles)
        queue, prompt = totals.queue_cycles / hz, totals.prompt_cycles / hz
        self._rack.observe(queue, prompt + first, rest)

    def recovered(self, recovery: Recovery) -> None:
        """Count a fault after which a rack went on; from any thread."""
        self._recoveries.inc()
        self._replayed.inc(recovery.replayed_cycles)

    def answered(self, handler: str, method: str, status: int) -> None:
        """Count an HTTP request; `handler` is its route's path, "none" where there is none."""
        self._http.labels(handler, method, f"{status // 100}xx").inc()

    def _lost(self, slip: Slip) -> None:
        self._slipped.inc(slip.total_seconds)
        self._worst_seconds = max(self._worst_seconds, slip.worst_seconds)
        self._worst.set(self._worst_seconds)
        if slip.worst_seconds > SLIP_SECONDS and not self._said:
            self._said = True
            self._say(
                f"WARNING: a token came {slip.worst_seconds:.3f} s later than its emulated time: "
                "this computer does not keep up with what is asked of it; from now on see "
                "rack:pace_slipped_seconds_total in /metrics and x_rack.slipped_seconds"
            )


class Meter:
    """Takes down when the tokens of one request left the rack; cheap, and in the rack's thread."""

    __slots__ = ("arrived_seconds", "cycles", "prompt_tokens", "slip", "stamps", "totals")

    def __init__(self, prompt_tokens: int, arrived_seconds: float) -> None:
        self.arrived_seconds = arrived_seconds
        self.prompt_tokens = prompt_tokens
        self.stamps: list[float] = []
        self.cycles: list[int] = []
        self.totals: Finished | None = None
        self.slip: Slip | None = None  # where paced

    def token(self, event: TokenEvent) -> None:
        """Take down a token."""
        self.stamps.append(time.perf_counter())
        self.cycles.append(event.emulated_cycles)

    def late(self, seconds: float) -> None:
        """Take down by how much a token is given out late; on the event loop."""
        self.slip = self.slip or Slip()
        self.slip.take(seconds)
