"""A rolling latency monitor: p50 and p99 of the last requests, and an alarm above a budget."""

import argparse
import time
from collections import deque

import groq


class LatencyMonitor:
    """Percentiles over the last `window` latencies."""

    def __init__(self, window: int, budget_seconds: float) -> None:
        self.budget_seconds = budget_seconds
        self._seconds: deque[float] = deque(maxlen=window)

    def record(self, seconds: float) -> None:
        """Take a latency; the oldest one beyond the window is forgotten."""
        self._seconds.append(seconds)

    def percentile(self, percent: float) -> float:
        """Return the smallest latency that at least `percent` % do not exceed."""
        ordered = sorted(self._seconds)
        return ordered[max(int(-(-len(ordered) * percent // 100)), 1) - 1]

    @property
    def over_budget(self) -> bool:
        """Whether the p99 is above the budget."""
        return self.percentile(99) > self.budget_seconds


def main() -> None:
    """Watch some requests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama-3.1-8b-instant")
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--budget-ms", type=float, default=1000.0)
    options = parser.parse_args()

    monitor = LatencyMonitor(options.window, options.budget_ms / 1e3)
    alarms = 0
    with groq.Groq() as client:
        for number in range(1, options.requests + 1):
            sent = time.perf_counter()
            client.chat.completions.create(
                model=options.model,
                messages=[{"role": "user", "content": "ping"}],
                max_completion_tokens=4,
            )
            monitor.record(time.perf_counter() - sent)
            alarms += monitor.over_budget
            if number % 10 == 0 or number == options.requests:
                p50, p99 = (monitor.percentile(percent) * 1e3 for percent in (50, 99))
                state = "OVER BUDGET" if monitor.over_budget else "ok"
                print(f"after {number:4}: p50 {p50:8.2f} ms  p99 {p99:8.2f} ms  {state}")
    print(f"{alarms} of {options.requests} requests with p99 above {options.budget_ms:g} ms")


if __name__ == "__main__":
    main()
