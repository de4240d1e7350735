"""Models that GroqCloud has retired, with the day, for the text of a 404.

The days are those for accounts without a contract. A server that has one of the models under its
old name serves it. Source of all: https://console.groq.com/docs/deprecations, as each row's grade
says.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from enum import Enum


class Grade(Enum):
    """How well a day is known."""

    A = "Groq's own notice, or the heading of its page, quoted word for word"
    B = "a report that gives the day, or the page's heading without the model"
    C = "from memory of the page; reports only agree that the model is gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """The day from which a model is not served."""

    day: datetime.date
    grade: Grade
    source: str  # the heading's anchor on the page, or who reported it

    def __str__(self) -> str:
        return f"{self.day.day} {self.day:%B %Y}"


def _on(day: str, grade: Grade, source: str, *models: str) -> dict[str, Retired]:
    when = datetime.date.fromisoformat(day)
    return dict.fromkeys(models, Retired(day=when, grade=grade, source=source))


RETIRED: dict[str, Retired] = {
    **_on(
        "2025-01-24", Grade.A,
        "#january-24-2025-llama-31-70b-and-llama-31-70b-speculative-decoding",
        "llama-3.1-70b-versatile", "llama-3.1-70b-specdec",
    ),
    **_on("2025-03-20", Grade.B, "papi-ai/groq, release 0.15.2", "mixtral-8x7b-32768"),
    **_on(
        "2025-04-14", Grade.B, "#april-14-2025-multiple-model-deprecations",
        "llama-3.2-1b-preview", "llama-3.2-3b-preview",
        "llama-3.2-11b-vision-preview", "llama-3.2-90b-vision-preview",
    ),
    **_on("2025-06-06", Grade.B, "AstraBert/llama-4-researcher#10", "llama-guard-3-8b"),
    **_on("2025-08-30", Grade.C, "karthink/gptel#1480", "llama3-8b-8192", "llama3-70b-8192"),
    **_on(
        "2025-10-02", Grade.A, "#october-2-2025-deepseekr1distillllama70b",
        "deepseek-r1-distill-llama-70b",
    ),
    **_on("2025-10-08", Grade.A, "#october-8-2025-gemma29bit", "gemma2-9b-it"),
    **_on(
        "2025-10-10", Grade.A, "the notice, in langchain-ai/langchain#32899",
        "moonshotai/kimi-k2-instruct",
    ),
    **_on(
        "2026-03-09", Grade.A, "#march-9-2026-metallamallama4maverick17b128einstruct",
        "meta-llama/llama-4-maverick-17b-128e-instruct",
    ),
    **_on(
        "2026-07-17", Grade.A,
        "#july-17-2026-qwenqwen332b-and-metallamallama4scout17b16einstruct",
        "qwen/qwen3-32b", "meta-llama/llama-4-scout-17b-16e-instruct",
    ),
    **_on(
        "2026-08-16", Grade.A, "#august-16-2026-llama318binstant-and-llama3370bversatile",
        "llama-3.1-8b-instant", "llama-3.3-70b-versatile",
    ),
}  # fmt: skip
