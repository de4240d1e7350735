"""Time to first token, and the time between tokens, over a stream."""

import argparse
import statistics
import time
from itertools import pairwise

import groq


def main() -> None:
    """Stream some answers; print when their tokens came."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama-3.1-8b-instant")
    parser.add_argument("--requests", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()

    first_token, between = [], []
    with groq.Groq() as client:
        for number in range(options.requests):
            sent = time.perf_counter()
            stream = client.chat.completions.create(
                model=options.model,
                messages=[{"role": "user", "content": "Count to twenty."}],
                max_completion_tokens=options.max_tokens,
                stream=True,
            )
            came, usage = [], None
            for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:  # not the role's empty one
                    came.append(time.perf_counter() - sent)
                if chunk.x_groq and chunk.x_groq.usage:
                    usage = chunk.x_groq.usage
            first_token.append(came[0])
            between += [later - earlier for earlier, later in pairwise(came)]
            rack_ms = usage.prompt_time * 1e3
            print(
                f"request {number}: first token after {came[0] * 1e3:.2f} ms, "
                f"of which the rack spent {rack_ms:.2f} ms on the prompt; {len(came)} tokens"
            )
    print(f"time to first token, median: {statistics.median(first_token) * 1e3:.2f} ms")
    if between:
        print(f"between tokens, median:      {statistics.median(between) * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
