"""The body of POST /responses, as pydantic checks it and the OpenAPI document shows it.

`input` is a text, or items: messages, and what an agent has done so far. A client may send items
of an earlier answer back as it got them; their ids and states say nothing that the prompt needs.
Reasoning is taken and left out, because no model here has made it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from rack.serve.bodies import MOST_TOOLS, Body, Function, Sampled, Whole, bounded

TAG = "type="
"""How the members of a union are tagged, so that a tag is no key of an item."""


def _known(what: str, wanted: Sequence[str], also: dict[str, str] | None = None) -> BeforeValidator:
    """Refuse what is not a JSON object of a known type; `also` says what to do instead of some."""

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"wanted a JSON object, got {type(value).__name__}")
        kind = _kind(value)
        if kind not in wanted:
            hint = (also or {}).get(str(kind), "wanted " + " or ".join(wanted))
            raise ValueError(f"{what} of the type {json.dumps(kind)} are not supported; {hint}")
        return value

    return BeforeValidator(check)


def _kind(value: Any) -> Any:
    """Return the type of an item or a part; only a message may leave it out."""
    if not isinstance(value, dict):
        return value.type
    return value.get("type", "message" if "role" in value else "item_reference")


def _tag(value: Any) -> str:
    return TAG + str(_kind(value))


def _or_text(schema: dict[str, Any]) -> None:
    """Document that a list may also be a plain text."""
    listed = {key: schema.pop(key) for key in ("type", "items", "minItems")}
    schema["anyOf"] = [{"type": "string"}, listed]


class InputText(Body):
    """Text that the client wrote."""

    type: Literal["input_text"]
    text: str


class OutputText(Body):
    """Text that an earlier answer had."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class Refusal(Body):
    """What an earlier answer had in place of text."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """The words of it."""
        return self.refusal


Part = Annotated[
    Annotated[InputText, Tag(f"{TAG}input_text")]
    | Annotated[OutputText, Tag(f"{TAG}output_text")]
    | Annotated[Refusal, Tag(f"{TAG}refusal")],
    Discriminator(_tag),
    _known("parts", ("input_text", "output_text", "refusal")),
]
Parts = Annotated[list[Part], Field(json_schema_extra=_or_text, min_length=1)]


def _parts(content: Any) -> Any:
    """Take a plain text as its only part."""
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}]
    if not isinstance(content, list):
        raise ValueError(f"wanted a text or a list of parts, got {type(content).__name__}")
    return content


class InputMessage(Body):
    """A message of the chat."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Parts
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    _plain = field_validator("content", mode="before")(_parts)

    @property
    def text(self) -> str:
        """All its parts."""
        return "".join(part.text for part in self.content)


class Reasoning(Body):
    """Reasoning of an earlier answer; left out."""

    type: Literal["reasoning"]
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: str | None = None
    id: str | None = None
    status: str | None = None


class FunctionCall(Body):
    """A call of a function that an earlier answer had."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None
    namespace: None = None
    caller: None = None


class FunctionCallOutput(Body):
    """What a function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: Parts
    id: str | None = None
    status: str | None = None
    caller: None = None

    _plain = field_validator("output", mode="before")(_parts)

    @property
    def text(self) -> str:
        """All its parts."""
        return "".join(part.text for part in self.output)


Item = Annotated[
    Annotated[InputMessage, Tag(f"{TAG}message")]
    | Annotated[FunctionCall, Tag(f"{TAG}function_call")]
    | Annotated[FunctionCallOutput, Tag(f"{TAG}function_call_output")]
    | Annotated[Reasoning, Tag(f"{TAG}reasoning")],
    Discriminator(_tag),
    _known(
        "items", ("message", "function_call", "function_call_output", "reasoning"),
        {"item_reference": "nothing is stored here: send the item itself (the AI SDK does with "
                           "providerOptions.openai.store false)"},
    ),
]  # fmt: skip


class ResponseTool(Function):
    """A function that a model may call."""

    type: Literal["function"]
    defer_loading: Literal[False] | None = None


class ResponseToolChoice(Body):
    """The function that must be called."""

    type: Literal["function"]
    name: str


class Format(Body):
    """What the text of an answer must be; `strict` makes no difference, it always is."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        named = self.name is not None and self.schema_ is not None
        if named != (self.type == "json_schema"):
            raise ValueError("wanted name and schema with the type json_schema and only there")
        return self

    def schema_of_answer(self) -> dict[str, Any] | None:
        """Return the JSON schema of the answer; None for plain text."""
        if self.type == "text":
            return None
        return {"type": "object"} if self.schema_ is None else self.schema_


class TextOptions(Body):
    """How an answer's text is made."""

    format: Format | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Body):
    """No model here reasons; what asks for none is taken."""

    effort: Literal["none"] | None = None
    summary: Literal["auto"] | None = None


Tools = Annotated[
    list[Annotated[ResponseTool, _known("tools", ("function",))]], Field(max_length=MOST_TOOLS)
]
_KEY = Annotated[str, Field(max_length=64)]
_VALUE = Annotated[str, Field(max_length=512)]


class ResponsesRequest(Sampled):
    """POST /responses."""

    input: Annotated[list[Item], Field(json_schema_extra=_or_text, min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[Whole | None, bounded(minimum=1)] = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    metadata: Annotated[dict[_KEY, _VALUE], Field(max_length=16)] | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def format(self) -> Format | None:
        """What the text must be, where that is said."""
        return None if self.text is None else self.text.format

    @field_validator("input", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        """Take a plain text as the only message, the user's."""
        if isinstance(given, str):
            return [{"role": "user", "content": given}]
        if not isinstance(given, list):
            raise ValueError(f"wanted a text or a list of items, got {type(given).__name__}")
        return given
