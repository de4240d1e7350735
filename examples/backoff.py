"""Rate limits: wait as long as the server says, and with growing, random pauses where it does not.

The SDK retries twice by itself; this does it by hand, to show what there is to know in a 429.
"""

import argparse
import random
import time
from collections.abc import Callable
from typing import TypeVar

import groq

T = TypeVar("T")
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0


def pause_seconds(error: groq.APIStatusError, attempt: int) -> float:
    """Return what the server asked for, or a random time whose limit doubles each attempt."""
    asked = error.response.headers.get("retry-after")
    if asked is not None:
        return float(asked)
    limit = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt)
    return random.uniform(0, limit)  # random, so that many clients do not come back together


def with_backoff(call: Callable[[], T], attempts: int) -> T:
    """Call until it is let through; the last error is the caller's."""
    for attempt in range(attempts):
        try:
            return call()
        except (groq.RateLimitError, groq.InternalServerError) as error:  # 429, and 5xx such as 503
            if attempt + 1 == attempts:
                raise
            pause = pause_seconds(error, attempt)
            print(f"{error.status_code}: {error.message}; waiting {pause:.2f} s")
            time.sleep(pause)
    raise ValueError("attempts: wanted at least 1")


def main() -> None:
    """Send more requests than a minute allows, and get every answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama-3.1-8b-instant")
    parser.add_argument("--requests", type=int, default=5)
    parser.add_argument("--attempts", type=int, default=6)
    options = parser.parse_args()

    with groq.Groq(max_retries=0) as client:
        for number in range(options.requests):
            raw = with_backoff(
                lambda number=number: client.chat.completions.with_raw_response.create(
                    model=options.model,
                    messages=[{"role": "user", "content": f"Say {number}."}],
                    max_completion_tokens=8,
                ),
                options.attempts,
            )
            left = raw.headers.get("x-ratelimit-remaining-requests", "any number")
            print(f"request {number}: answered; requests left: {left}")
    print(f"{options.requests} of {options.requests} answered")


if __name__ == "__main__":
    main()
