"""Response bodies, exactly as the Groq and OpenAI SDKs read them; no I/O.

Times in `usage` are emulated seconds. Wall times, cycles and marks are under `x_rack` only.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rack.serve.calls import Calls
from rack.serve.identity import Identity
from rack.serve.runner import Finished, together
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


def new_id(kind: str) -> str:
    """Return `kind`, `_` and a ULID: 48 bits of milliseconds, 80 random bits."""
    value = int(time.time() * 1000) << 80 | _RANDOM.getrandbits(80)
    return f"{kind}_" + "".join(_BASE32[value >> shift & 31] for shift in range(125, -1, -5))


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
    index: int = 0  # which of a request's prompts
    created: int = field(default_factory=lambda: int(time.time()))
    unique: str = field(default_factory=lambda: str(_uuid4()))

    @property
    def chat(self) -> bool:
        """Whether this answers a chat."""
        return self.parsed.messages is not None

    @cached_property
    def calls(self) -> Calls | None:
        """What reads calls out of the text, where functions may be called."""
        return None if self.parsed.tools is None else Calls(self.parsed.tools.names)

    def whole(self, results: Sequence[tuple[Sequence[str], Finished]]) -> dict[str, Any]:
        """Return the body of an answer that is not streamed, from each prompt's texts."""
        total = together([totals for _, totals in results])
        return {
            **self._head("chat.completion"),
            "choices": [self._choice(index, *result) for index, result in enumerate(results)],
            "usage": self.usage(total),
            "service_tier": self.parsed.service_tier,
            "x_groq": self.x_groq(total),
            "x_rack": self.x_rack(total),
        }

    def _choice(self, index: int, texts: Sequence[str], totals: Finished) -> dict[str, Any]:
        content: dict[str, Any] = {"text": "".join(texts)}
        if self.calls is not None:
            content = {"message": self.calls.message(texts)}
        elif self.chat:
            content = {"message": {"role": "assistant", "content": content["text"]}}
        reason = self._finish_reason(totals)
        return {"index": index, **content, "logprobs": None, "finish_reason": reason}

    def _finish_reason(self, totals: Finished) -> str:
        called = self.calls is not None and self.calls.any and totals.finish_reason == "stop"
        return "tool_calls" if called else totals.finish_reason

    def role_chunk(self) -> dict[str, Any] | None:
        """Return the chunk that opens a chat's stream; a text completion has none."""
        if not self.chat:
            return None
        called = self.calls is not None and self.parsed.params.grammar is not None
        delta = {"role": "assistant", "content": None if called else ""}
        return self._chunk(delta, None, made=0) | {"x_groq": self.x_groq()}

    def text_event(self, text: str, made: int) -> bytes:
        """Return the server-sent event of a chunk with text, the `made`-th token's."""
        if self.calls is not None:  # there may be nothing to say yet
            return self._deltas(self.calls.deltas(text), made)
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

    def rest(self, made: int) -> bytes:
        """Return the events of what was held back to see if it becomes a call, at the end."""
        return b"" if self.calls is None else self._deltas(self.calls.rest(), made)

    def _deltas(self, deltas: Sequence[dict[str, Any]], made: int) -> bytes:
        return b"".join(event(self._chunk(delta, None, made=made)) for delta in deltas)

    def last_chunk(self, totals: Finished, total: Finished | None) -> dict[str, Any]:
        """Return the chunk with the finish reason; with `total`, the request's usage and marks."""
        made, reason = totals.completion_tokens, self._finish_reason(totals)
        chunk = self._chunk({} if self.chat else "", reason, made=made)
        if total is None:
            return chunk
        return chunk | {
            "service_tier": self.parsed.service_tier,
            "x_groq": self.x_groq(total, self.usage(total)),
            "x_rack": self.x_rack(total),
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
            "prompt_tokens_details": {"cached_tokens": totals.cached_tokens},
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
            "schedule_hash": totals.schedule_hash,
            "data_hash": totals.data_hash,
            "emulated_cycles": emulated_cycles(totals),
            "waited_seconds": self._seconds(totals.waited_cycles),
            "wall_seconds": {
                "queue": round(totals.wall_queue_seconds, 6),
                "prompt": round(totals.wall_prompt_seconds, 6),
                "completion": round(totals.wall_completion_seconds, 6),
            },
            "slipped_seconds": None if totals.slip is None else totals.slip.to_dict(),
            "recoveries": [recovery.to_dict() for recovery in totals.recoveries],
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
        choice = {
            "index": self.index, **content, "logprobs": None, "finish_reason": finish_reason,
        }  # fmt: skip
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

    def x_groq(
        self, totals: Finished | None = None, usage: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return GroqCloud's own part: the request's id and seed, and at the end its usage.

        With a prefix cache that has the tokens that were found: in SRAM, where all is.
        """
        told = dict(usage or {})
        if totals is not None and self.identity.prefix_cache:
            told["sram_cached_tokens"] = totals.cached_tokens
        head = {"id": self.request_id, "seed": self.parsed.seed}
        return head | {"usage": told} if told else head

    def _seconds(self, cycles: int) -> float:
        return round(cycles / self.identity.prepared.compiled.chip.clock_hz, 9)
