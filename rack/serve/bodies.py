"""The bodies of requests, as pydantic checks them and the OpenAPI document shows them.

Whole numbers may be written as JSON has them: 8.0 is 8.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    field_validator,
    model_validator,
)

MOST_TOOLS = 128
MOST_PROMPTS = 128
LEAST_SEED, SEEDS = -(1 << 63), 1 << 64


def bounded(**limits: int) -> Any:
    """Document a range; `SamplingParams` checks it, with a better message."""

    def add(schema: dict[str, Any]) -> None:
        for one in schema["anyOf"]:  # the number or null
            if one["type"] != "null":
                one |= limits

    return Field(json_schema_extra=add)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]

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
        {
            "type": "array",
            "items": {"anyOf": _PROMPT_ONE},
            "minItems": 1,
            "maxItems": MOST_PROMPTS,
        },
    ]
}


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(Body):
    """What a stream carries beside the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # OpenAI's padding against eavesdroppers: none here
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

    def schema_of_answer(self) -> dict[str, Any] | None:
        """Return the JSON schema of the answer; None for plain text."""
        if self.type == "text":
            return None
        schema = self.json_schema.schema_ if self.json_schema else None
        return {"type": "object"} if schema is None else schema


_NAME = StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}\z")
FunctionName = Annotated[str, _NAME, WithJsonSchema(_STRING | {"pattern": "^[a-zA-Z0-9_-]{1,64}$"})]


class Function(Body):
    """A function that a model may call; `parameters` is the JSON schema of its arguments."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Body):
    """A tool; only functions are known."""

    type: Literal["function"]
    function: Function


class _Name(Body):
    name: str


class NamedTool(Body):
    """The function that must be called."""

    type: Literal["function"]
    function: _Name


class CalledFunction(Body):
    """What a model called; the arguments are JSON text."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call in an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Whole | None = None  # left by clients that put streams together


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


_PARTS = Field(min_length=1)


def joined(content: str | list[TextPart] | None) -> str | None:
    """Return content as one text."""
    return "".join(part.text for part in content) if isinstance(content, list) else content


class _Message(Body):
    content: str | Annotated[list[TextPart], _PARTS]
    name: str | None = None


class SystemMessage(_Message):
    """What the model is told before the chat."""

    role: Literal["system", "developer"]


class UserMessage(_Message):
    """What the user says."""

    role: Literal["user"]


class AssistantMessage(Body):
    """An earlier answer; what it holds besides text and calls is not read."""

    role: Literal["assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None


class ToolMessage(_Message):
    """The result of a call."""

    role: Literal["tool"]
    tool_call_id: str


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class Sampled(Body):
    """What every request for tokens has: whose, how they are chosen, how they are sent."""

    model: str
    temperature: Annotated[float | None, bounded(minimum=0, maximum=2)] = None
    top_p: Annotated[float | None, bounded(minimum=0, maximum=1)] = None
    top_k: Annotated[Whole | None, bounded(minimum=-1)] = None
    seed: Annotated[Whole | None, bounded(minimum=LEAST_SEED, maximum=SEEDS - 1)] = None
    stop: Annotated[str | list[str] | None, WithJsonSchema(_STOP)] = None
    stream: bool | None = None
    min_tokens: Annotated[Whole | None, bounded(minimum=0)] = None
    ignore_eos: bool | None = None
    user: str | None = None
    service_tier: (
        Literal["auto", "default", "on_demand", "flex", "performance", "priority"] | None
    ) = None


class Request(Sampled):
    """What chats and text completions share."""

    stream_options: StreamOptions | None = None
    max_tokens: Annotated[Whole | None, bounded(minimum=1)] = None


class ChatRequest(Request):
    """POST /chat/completions."""

    messages: Annotated[list[Message], Field(json_schema_extra={"minItems": 1})]
    max_completion_tokens: Annotated[Whole | None, bounded(minimum=1)] = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    safety_identifier: str | None = None  # for the provider's books
    prompt_cache_key: str | None = None


class TextRequest(Request):
    """POST /completions."""

    prompt: Annotated[list[str | list[int]], WithJsonSchema(_PROMPT)]

    @field_validator("prompt", mode="before")
    @classmethod
    def _several(cls, prompt: Any) -> Any:
        """Make a list of prompts of what may be one: text or token ids."""
        one = isinstance(prompt, str) or not (
            isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list)
        )
        prompts = [_prompt(each) for each in ([prompt] if one else prompt)]
        if len(prompts) > MOST_PROMPTS:
            raise ValueError(f"wanted up to {MOST_PROMPTS} prompts, got {len(prompts)}")
        return prompts


def _prompt(prompt: Any) -> str | list[int]:
    text = prompt if isinstance(prompt, str) else None
    tokens = [_whole(token) for token in prompt] if isinstance(prompt, list) else []
    if (text is None and not isinstance(prompt, list)) or any(type(t) is not int for t in tokens):
        raise ValueError("wanted a string or a list of token ids")
    if not (text or tokens):
        raise ValueError("wanted some text or token ids, got none")
    return text or tokens


_ONE_OF_BOTH: Any = {
    "anyOf": [
        {
            "required": ["prompt"],
            "properties": {"prompt": _STRING, "messages": _NULL, "tools": _NULL},
        },
        {
            "required": ["messages"],
            "properties": {"prompt": _NULL, "messages": {"type": "array", "minItems": 1}},
        },
    ]
}


class TokenizeRequest(Body):
    """POST /tokenize: a prompt or a chat."""

    model_config = ConfigDict(json_schema_extra=_ONE_OF_BOTH)

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MOST_TOOLS)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("wanted one of prompt and messages")
        if self.tools is not None and self.messages is None:
            raise ValueError("wanted tools only with messages")
        return self


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Annotated[Whole, Field(json_schema_extra={"minimum": 0})]]
