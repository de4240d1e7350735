"""Response bodies, exactly as the Groq and OpenAI SDKs read them; no I/O.

Times in `usage` are emulated seconds. Wall times, cycles and marks are under `x_rack` only.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rack.serve.identity import Identity
from rack.serve.runner import Finished
from rack.serve.schemas import Parsed

DONE = b"data: [DONE]\n\n"
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's, as GroqCloud's ids


# Ids must differ and need not be secret; a system call for each would be dear.
_RANDOM = random.Random()


def _uuid4() -> uuid.UUID:
    return uuid.UUID(int=_RANDOM.getrandbits(128), version=4)


def dumps(body: Any) -> bytes:
    """Write JSON; ASCII, because a client may have sent half a surrogate pair that is quoted."""
    return json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")


def event(body: Any) -> bytes:
    """Return a server-sent event."""
    return b"data: " + dumps(body) + b"\n\n"


def request_id() -> str:
    """Return `req_` and a ULID: 48 bits of milliseconds, 80 random bits."""
    value = int(time.time() * 1000) << 80 | _RANDOM.getrandbits(80)
    return "req_" + "".join(_BASE32[value >> shift & 31] for shift in range(125, -1, -5))


def emulated_cycles(totals: Finished) -> dict[str, int]:
    """Return the cycles of a request by part."""
    return {
        "queue": totals.queue_cycles,
        "prompt": totals.prompt_cycles,
        "completion": totals.completion_cycles,
    }


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The bodies of one answer: whole, or chunk by chunk."""

    parsed: Parsed
    identity: Identity
    request_id: str
    prompt_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))
    unique: str = field(default_factory=lambda: str(_uuid4()))

    @property
    def chat(self) -> bool:
        """Whether this answers a chat."""
        return self.parsed.messages is not None

    def whole(self, text: str, totals: Finished) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        )
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": totals.finish_reason}
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": self.usage(totals),
            "service_tier": "on_demand",
            "x_groq": self._x_groq(),
            "x_rack": self.x_rack(totals),
        }

    def role_chunk(self) -> dict[str, Any] | None:
        """Return the chunk that opens a chat's stream; a text completion has none."""
        if not self.chat:
            return None
        chunk = self._chunk({"role": "assistant", "content": ""}, None, made=0)
        return chunk | {"x_groq": self._x_groq()}

    def text_event(self, text: str, made: int) -> bytes:
        """Return the server-sent event of a chunk with text, the `made`-th token's."""
        if self.parsed.continuous_usage:
            return event(self._text_chunk(text, made))
        before, after = self._around_text  # only the text is written anew
        return before + dumps(text) + after

    def _text_chunk(self, text: str, made: int) -> dict[str, Any]:
        return self._chunk({"content": text} if self.chat else text, None, made=made)

    @cached_property
    def _around_text(self) -> tuple[bytes, bytes]:
        mark = str(_uuid4())
        before, after = event(self._text_chunk(mark, 0)).split(dumps(mark))
        return before, after

    def last_chunk(self, totals: Finished) -> dict[str, Any]:
        """Return the chunk with the finish reason, the usage and the marks."""
        made = totals.completion_tokens
        return self._chunk({} if self.chat else "", totals.finish_reason, made=made) | {
            "service_tier": "on_demand",
            "x_groq": self._x_groq() | {"usage": self.usage(totals)},
            "x_rack": self.x_rack(totals),
        }

    def usage_chunk(self, totals: Finished) -> dict[str, Any]:
        """Return the extra chunk of stream_options.include_usage."""
        head = self._head("chat.completion.chunk")
        return {**head, "choices": [], "usage": self.usage(totals)}

    def usage(self, totals: Finished) -> dict[str, Any]:
        """Return token counts and emulated seconds; total_time leaves the queue out."""
        prompt, completion = totals.prompt_tokens, totals.completion_tokens
        prompt_time = self._seconds(totals.prompt_cycles)
        completion_time = self._seconds(totals.completion_cycles)
        return {
            "queue_time": self._seconds(totals.queue_cycles),
            "prompt_tokens": prompt,
            "prompt_time": prompt_time,
            "completion_tokens": completion,
            "completion_time": completion_time,
            "total_tokens": prompt + completion,
            "total_time": round(prompt_time + completion_time, 9),
        }

    def x_rack(self, totals: Finished) -> dict[str, Any]:
        """Return the marks, the exact cycles and the wall seconds."""
        return {
            **self.identity.marks(),
            "data_hash": totals.data_hash,
            "emulated_cycles": emulated_cycles(totals),
            "wall_seconds": {
                "queue": round(totals.wall_queue_seconds, 6),
                "prompt": round(totals.wall_prompt_seconds, 6),
                "completion": round(totals.wall_completion_seconds, 6),
            },
            "slipped_seconds": None if totals.slip is None else totals.slip.to_dict(),
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.unique}" if self.chat else f"cmpl-{self.unique}",
            "object": kind if self.chat else "text_completion",
            "created": self.created,
            "model": self.parsed.model,
            "system_fingerprint": self.identity.fingerprint,
        }

    def _chunk(
        self, piece: dict[str, Any] | str, finish_reason: str | None, *, made: int
    ) -> dict[str, Any]:
        content = {"delta": piece} if self.chat else {"text": piece}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self.parsed.continuous_usage:
            chunk["usage"] = {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": made,
                "total_tokens": self.prompt_tokens + made,
            }
        elif self.parsed.include_usage:
            chunk["usage"] = None
        return chunk

    def _x_groq(self) -> dict[str, Any]:
        return {"id": self.request_id, "seed": self.parsed.params.seed}

    def _seconds(self, cycles: int) -> float:
        return round(cycles / self.identity.prepared.compiled.chip.clock_hz, 9)
