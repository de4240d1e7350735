"""The bodies of requests, as pydantic checks them and the OpenAPI document shows them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator


def _range(**limits: int) -> Any:
    """Document a range; `SamplingParams` checks it, with a better message."""

    def add(schema: dict[str, Any]) -> None:
        for one in schema["anyOf"]:  # the number or null
            if one["type"] != "null":
                one |= limits

    return Field(json_schema_extra=add)


_STRING, _ID, _NULL = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "null"}
_STOP = {
    "anyOf": [
        _STRING | {"minLength": 1},
        {"type": "array", "items": _STRING | {"minLength": 1}, "maxItems": 4},
        _NULL,
    ]
}
_PROMPT_ONE = [_STRING | {"minLength": 1}, {"type": "array", "items": _ID, "minItems": 1}]
_PROMPT = {
    "anyOf": [
        *_PROMPT_ONE,
        {"type": "array", "items": {"anyOf": _PROMPT_ONE}, "minItems": 1, "maxItems": 1},
    ]
}


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(Body):
    """What a stream carries beside the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: counts so far in every chunk


class JsonSchema(Body):
    """The schema that an answer must meet; `strict` makes no difference, it always is."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("wanted json_schema with the type json_schema and only there")
        return self

    def schema_text(self) -> str | None:
        """Return the JSON schema of the answer as text; None for plain text."""
        if self.type == "text":
            return None
        schema = self.json_schema.schema_ if self.json_schema else None
        return json.dumps({"type": "object"} if schema is None else schema)


_TEXT_OR_PARTS = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
                "additionalProperties": False,
            },
        },
    ]
}


class Message(Body):
    """One message of a chat; text only."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, WithJsonSchema(_TEXT_OR_PARTS)]

    @field_validator("content", mode="before")
    @classmethod
    def _join(cls, content: Any) -> Any:
        """Join a list of text parts; anything but text is refused."""
        if isinstance(content, str):
            return content
        parts: list[Any] = content if isinstance(content, list) else [None]
        texts = [part["text"] for part in parts if _is_text(part)]
        if not texts or len(texts) < len(parts):
            raise ValueError('wanted a string or a list of {"type": "text", "text": "..."} parts')
        return "".join(texts)


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and part.keys() == {"type", "text"}
        and part["type"] == "text"
        and isinstance(part["text"], str)
    )


class Request(Body):
    """What chats and text completions share."""

    model: str
    temperature: Annotated[float | None, _range(minimum=0, maximum=2)] = None
    top_p: Annotated[float | None, _range(exclusiveMinimum=0, maximum=1)] = None
    top_k: Annotated[int | None, _range(minimum=-1)] = None
    seed: Annotated[int | None, _range(minimum=0, maximum=(1 << 64) - 1)] = None
    stop: Annotated[str | list[str] | None, WithJsonSchema(_STOP)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int | None, _range(minimum=1)] = None
    min_tokens: Annotated[int | None, _range(minimum=0)] = None
    ignore_eos: bool | None = None
    user: str | None = None
    service_tier: Literal["auto", "default", "on_demand"] | None = None


class ChatRequest(Request):
    """POST /chat/completions."""

    messages: Annotated[list[Message], Field(json_schema_extra={"minItems": 1})]
    max_completion_tokens: Annotated[int | None, _range(minimum=1)] = None
    response_format: ResponseFormat | None = None


class TextRequest(Request):
    """POST /completions."""

    prompt: Annotated[str | list[int], WithJsonSchema(_PROMPT)]

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, prompt: Any) -> Any:
        """Unwrap a list of one prompt, which is what benchmark clients send."""
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
            if len(prompt) != 1:
                raise ValueError(f"wanted one prompt, got {len(prompt)}")
            prompt = prompt[0]
        ids = prompt if isinstance(prompt, list) else [None]
        if not isinstance(prompt, str) and not all(type(token) is int for token in ids):
            raise ValueError("wanted a string or a list of token ids")
        if not prompt:
            raise ValueError("wanted some text or token ids, got none")
        return prompt


class TokenizeRequest(Body):
    """POST /tokenize: a prompt or a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("wanted one of prompt and messages")
        return self


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Annotated[int, Field(json_schema_extra={"minimum": 0})]]
