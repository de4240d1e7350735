"""Two backends behind one function: one for what a person waits for, one for what can wait.

LATENCY_URL names the backend with the short queue, BATCH_URL the one for bulk work. An interactive
request that its backend cannot take now (429, 503, or no answer) goes to the other one; a batch
request never takes the interactive backend's place in the queue.
"""

import argparse
import os
import time
from dataclasses import dataclass
from enum import Enum

import groq

DEFAULT_URL = "http://127.0.0.1:8000"


class Work(Enum):
    """What a request is for."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True)
class Routed:
    """An answer, and where it came from."""

    backend: str
    text: str
    seconds: float


class Router:
    """Sends each request where its kind of work belongs."""

    def __init__(self, latency_url: str, batch_url: str, model: str) -> None:
        self._model = model
        # The interactive backend must answer soon or not at all; the batch backend may take long.
        self._latency = groq.Groq(base_url=latency_url, timeout=10.0, max_retries=0)
        self._batch = groq.Groq(base_url=batch_url, timeout=600.0, max_retries=5)

    def ask(self, work: Work, prompt: str, max_tokens: int) -> Routed:
        """Return an answer of the backend for this work, or of the batch backend in its place."""
        if work is Work.BATCH:
            return self._send("batch", self._batch, prompt, max_tokens)
        try:
            return self._send("latency", self._latency, prompt, max_tokens)
        except (groq.RateLimitError, groq.InternalServerError, groq.APIConnectionError) as error:
            print(f"the latency backend cannot: {error}; trying the batch backend")
            return self._send("batch", self._batch, prompt, max_tokens)

    def _send(self, name: str, client: groq.Groq, prompt: str, max_tokens: int) -> Routed:
        sent = time.perf_counter()
        answer = client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": prompt}],
            max_completion_tokens=max_tokens,
        )
        text = answer.choices[0].message.content or ""
        return Routed(name, text, time.perf_counter() - sent)


def main() -> None:
    """Route a mixed list of requests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama-3.1-8b-instant")
    options = parser.parse_args()
    one = os.environ.get("GROQ_BASE_URL", DEFAULT_URL)  # without two, one is both
    router = Router(
        os.environ.get("LATENCY_URL", one), os.environ.get("BATCH_URL", one), options.model
    )
    jobs = [
        (Work.INTERACTIVE, "Finish my sentence: the quick brown", 8),
        (Work.BATCH, "Summarise the history of computing.", 64),
        (Work.INTERACTIVE, "Is this spam? You have won a prize.", 4),
        (Work.BATCH, "Write a product description for a kettle.", 64),
    ]
    for work, prompt, max_tokens in jobs:
        routed = router.ask(work, prompt, max_tokens)
        print(f"{work.value:11} -> {routed.backend:7} {routed.seconds * 1e3:8.2f} ms")


if __name__ == "__main__":
    main()
