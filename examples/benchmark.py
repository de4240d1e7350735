"""Latency and throughput of equal requests: p50, p95 and the coefficient of variation.

Two clocks: what this client waited, and what the rack says it took (`usage.total_time`). The
rack's own time is the same for equal requests, so its coefficient of variation is 0.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import groq


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` % of the values do not exceed."""
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(int(rank), 1) - 1]


def describe(name: str, seconds: Sequence[float]) -> str:
    """Return one line of statistics, in milliseconds."""
    mean = statistics.fmean(seconds)
    variation = statistics.pstdev(seconds, mean) / mean
    p50, p95 = (percentile(seconds, percent) * 1e3 for percent in (50, 95))
    return (
        f"{name:8} mean {mean * 1e3:9.3f} ms  p50 {p50:9.3f} ms  p95 {p95:9.3f} ms  "
        f"CV {variation:.6f}"
    )


def main() -> None:
    """Send the requests one after another and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama-3.1-8b-instant")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()

    wall, emulated, tokens = [], [], 0
    with groq.Groq() as client:
        started = time.perf_counter()
        for _ in range(options.requests):
            sent = time.perf_counter()
            answer = client.chat.completions.create(
                model=options.model,
                messages=[{"role": "user", "content": "Explain SRAM in one paragraph."}],
                max_completion_tokens=options.max_tokens,
                seed=1,
            )
            wall.append(time.perf_counter() - sent)
            emulated.append(answer.usage.total_time)
            tokens += answer.usage.completion_tokens
        seconds = time.perf_counter() - started
    print(describe("client", wall))
    print(describe("rack", emulated))
    print(f"{options.requests / seconds:.1f} requests/s, {tokens / seconds:.1f} tokens/s")


if __name__ == "__main__":
    main()
