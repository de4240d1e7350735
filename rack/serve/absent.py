"""Endpoints that GroqCloud or OpenAI has and this emulator has not.

They are answered with a 404, which no SDK tries again, and a sentence that says why.
"""

from __future__ import annotations

import re

_NAMES = (
    "assistants", "audio", "batches", "containers", "conversations", "embeddings", "evals",
    "files", "fine-tunes", "fine-tuning", "fine_tuning", "fine_tunings", "images",
    "moderations", "organization", "organizations", "projects", "realtime", "rerank",
    "reranking", "skills", "threads", "uploads", "vector_stores", "videos",
)  # fmt: skip
_STORED = re.compile(r"(?:chat/completions|responses)/.+")
"""Paths that read or change what an earlier answer left; nothing is stored here."""
_INFERENCE = (
    "this emulator does inference only: POST /chat/completions, /completions and /responses, "
    "GET /models and /models/{id}"
)


def why_absent(path: str, prefixes: tuple[str, ...]) -> str | None:
    """Return why a path of the emulated APIs is not there; None if none of them has it."""
    for prefix in prefixes:
        if not path.startswith(f"{prefix}/"):
            continue
        rest = path.removeprefix(f"{prefix}/")
        if _STORED.fullmatch(rest):
            return f"answers are not stored; {_INFERENCE}"
        if rest.split("/")[0] in _NAMES:
            return _INFERENCE
    return None
