"""The response object and its output items, as the openai SDK reads them; no I/O.

The counts of `usage` are OpenAI's. Emulated times, which a chat has in its `usage`, are strings in
`metadata` where the client asks for them with `Groq-Beta: inference-metrics`, as GroqCloud has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from rack.serve.bodies import Body
from rack.serve.errors import ApiError
from rack.serve.responses import Answer, new_id
from rack.serve.responses_api.bodies import ResponsesRequest
from rack.serve.responses_api.output import Output
from rack.serve.runner import Finished

_TIERS = ("flex", "performance", "priority")
_TIMES = ("completion_time", "prompt_time", "queue_time", "total_time")


def wants_metrics(header: str | None) -> bool:
    """Whether a `Groq-Beta` header asks for emulated times."""
    return "inference-metrics" in [part.strip() for part in (header or "").split(",")]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer to one request; `chat` is the answer of the chat that it stands for."""

    request: ResponsesRequest
    chat: Answer
    metrics: bool
    id: str = field(default_factory=lambda: new_id("resp"))

    def output(self) -> Output:
        """Return what makes the answer's items."""
        tools = self.chat.parsed.tools
        return Output(None if tools is None else tools.names)

    def whole(self, results: Sequence[tuple[Sequence[str], Finished]]) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        ((texts, totals),), output = results, self.output()
        for _ in chain(output.take("".join(texts)), output.end(status_of(totals))):
            pass
        return self.ended(output.items, totals)

    def begun(self) -> dict[str, Any]:
        """Return the response object while it is made."""
        return self._object("in_progress", []) | {"x_groq": self.chat.x_groq()}

    def ended(self, output: list[dict[str, Any]], totals: Finished) -> dict[str, Any]:
        """Return the response object of an answer that has come to its end."""
        body = self._object(status_of(totals), output)
        if totals.finish_reason == "length":
            body["incomplete_details"] = {"reason": "max_output_tokens"}
        if self.metrics:
            usage = self.chat.usage(totals)
            body["metadata"] |= {name: f"{usage[name]:.9f}" for name in _TIMES}
        return body | {
            "usage": {
                "input_tokens": totals.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": totals.cached_tokens, "cache_write_tokens": 0,
                },
                "output_tokens": totals.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": totals.prompt_tokens + totals.completion_tokens,
            },
            "x_groq": self.chat.x_groq(totals),
            "x_rack": self.chat.x_rack(totals),
        }  # fmt: skip

    def failed(self, output: list[dict[str, Any]], error: ApiError) -> dict[str, Any]:
        """Return the response object of an answer that failed after its stream had begun."""
        code = "invalid_prompt" if error.status == 400 else "server_error"
        return self._object("failed", output) | {
            "error": {"code": code, "message": error.message}, "x_groq": self.chat.x_groq(),
        }  # fmt: skip

    def _object(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        asked, choice = self.request, self.request.tool_choice
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.chat.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "metadata": dict(asked.metadata or {}),
            "model": asked.model,
            "output": output,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": None,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": None,
            "service_tier": asked.service_tier if asked.service_tier in _TIERS else "default",
            "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": {"type": "text"} if asked.format is None else _given(asked.format)},
            "tool_choice": _given(choice) if isinstance(choice, Body) else choice or "auto",
            "tools": [{"parameters": None, "strict": None} | _given(t) for t in asked.tools or ()],
            "top_logprobs": 0,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
        }


def _given(body: Body) -> dict[str, Any]:
    """Return a part of the request as it was given."""
    return body.model_dump(by_alias=True, exclude_unset=True)


def status_of(totals: Finished) -> str:
    """Return how an answer ended: `incomplete` where the length cut it off."""
    return "incomplete" if totals.finish_reason == "length" else "completed"
