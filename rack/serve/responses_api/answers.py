"""The body of the answer of POST /responses as the OpenAPI document shows it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rack.serve.answers import XGroq, XRack
from rack.serve.responses_api.bodies import ResponseTool, ResponseToolChoice


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ResponseText(_Answer):
    """The part of a message with its text."""

    type: Literal["output_text"]
    text: str
    annotations: list[None] = Field(max_length=0)
    logprobs: list[None] = Field(max_length=0)


class ResponseMessage(_Answer):
    """The output item with the answer's text."""

    id: str
    type: Literal["message"]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[ResponseText]


class ResponseCall(_Answer):
    """The output item of a call that the client is to make; the arguments are JSON text."""

    id: str
    type: Literal["function_call"]
    status: Literal["in_progress", "completed", "incomplete"]
    call_id: str
    name: str
    arguments: str


class ResponseTextFormat(_Answer):
    """What the text must be, as the request had it."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseTextOptions(_Answer):
    """How the text is made."""

    format: ResponseTextFormat


class ResponseReasoning(_Answer):
    """No model here reasons."""

    effort: None
    summary: None


class IncompleteDetails(_Answer):
    """Why an answer was cut off."""

    reason: Literal["max_output_tokens"]


class InputTokensDetails(_Answer):
    """There is no prompt cache."""

    cached_tokens: Literal[0]
    cache_write_tokens: Literal[0]


class OutputTokensDetails(_Answer):
    """No model here reasons."""

    reasoning_tokens: Literal[0]


class ResponseUsage(_Answer):
    """Tokens; emulated times are in `metadata` with the header Groq-Beta: inference-metrics."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseObject(_Answer):
    """Answer of POST /responses; with `stream`, what its last event has."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    background: Literal[False]
    error: None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    model: str
    output: list[ResponseMessage | ResponseCall]
    parallel_tool_calls: bool
    previous_response_id: None
    prompt_cache_key: None
    reasoning: ResponseReasoning
    safety_identifier: None
    service_tier: Literal["default", "flex", "performance", "priority"]
    store: Literal[False]
    temperature: float
    text: ResponseTextOptions
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice
    tools: list[ResponseTool]
    top_logprobs: Literal[0]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage
    user: str | None
    x_groq: XGroq
    x_rack: XRack
