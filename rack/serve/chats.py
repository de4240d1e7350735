"""A chat's messages and tools, from the API's words to those of `rack.text.tools`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rack.serve.bodies import (
    AssistantMessage,
    ChatRequest,
    FunctionTool,
    Message,
    NamedTool,
    ToolMessage,
    joined,
)
from rack.serve.errors import ApiError, refuse
from rack.text.grammar import MAX_DEPTH, depth
from rack.text.tools import Tool, Tools

SCHEMA_PARAM = "response_format.json_schema.schema"


def chat_of(messages: Sequence[Message]) -> tuple[Mapping[str, Any], ...]:
    """Return messages as `rack.text.tools.chat_tokens` takes them.

    Raises ApiError for a result of a call that was not made.
    """
    calls: set[str] = set()
    out = []
    for number, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        one: dict[str, Any] = {"role": role, "content": joined(message.content)}
        if message.name is not None:
            one["name"] = message.name
        if isinstance(message, AssistantMessage):
            if message.tool_calls:
                one["tool_calls"] = [
                    call.model_dump(exclude={"index"}) for call in message.tool_calls
                ]
                calls |= {call.id for call in message.tool_calls}
            else:
                one["content"] = one["content"] or ""
        elif isinstance(message, ToolMessage):
            _check_call(message.tool_call_id, calls, number)
            one["tool_call_id"] = message.tool_call_id
        out.append(one)
    return tuple(out)


def _check_call(identity: str, calls: set[str], number: int) -> None:
    if identity not in calls:
        made = ", ".join(map(repr, sorted(calls))) or "none"
        raise ApiError(
            400, f"messages[{number}].tool_call_id: a tool message must answer an earlier "
            f"assistant message's tool_calls; wanted one of their ids ({made}), got {identity!r}",
            param=f"messages[{number}].tool_call_id",
        )  # fmt: skip


def tools_of(request: ChatRequest) -> Tools | None:
    """Return what may be or must be called; None for nothing. Raises ApiError."""
    choice, offered = request.tool_choice, offered_tools(request.tools or ())
    if not offered:
        if choice not in (None, "none", "auto"):
            refuse("tool_choice", "only with tools")
        return None
    named = choice.function.name if isinstance(choice, NamedTool) else None
    if named is not None and named not in [tool.name for tool in offered]:
        names = ", ".join(tool.name for tool in offered)
        refuse("tool_choice.function.name", f"wanted one of the tools ({names}), got {named!r}")
    if choice == "none":
        return None
    format_ = request.response_format
    if format_ is not None and format_.type != "text":
        refuse("response_format", f"{format_.type} cannot be combined with tools")
    return Tools(
        offered=offered, required=named is not None or choice == "required", named=named,
        parallel=request.parallel_tool_calls is not False,
    )  # fmt: skip


def offered_tools(tools: Sequence[FunctionTool]) -> tuple[Tool, ...]:
    """Return the functions of a request. Raises ApiError."""
    out: dict[str, Tool] = {}
    for number, tool in enumerate(tools):
        function, where = tool.function, f"tools[{number}].function"
        if function.name in out:
            refuse(f"{where}.name", f"wanted a name of its own, got {function.name!r} again")
        check_text(function.description or "", f"{where}.description")
        param = f"{where}.parameters"
        if function.parameters is not None:
            check_schema(function.parameters, param)
            kinds = function.parameters.get("type", "object")
            if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
                refuse(param, f"wanted the schema of an object, got the type {kinds!r}")
        out[function.name] = Tool(
            name=function.name, description=function.description, strict=function.strict,
            parameters=function.parameters, param=param,
        )  # fmt: skip
    return tuple(out.values())


def check_schema(schema: Mapping[str, Any], param: str) -> None:
    """Raise ApiError for a schema that is nested too deeply, or is not Unicode."""
    if (levels := depth(schema)) > MAX_DEPTH:
        refuse(param, f"wanted a schema of at most {MAX_DEPTH} levels, got {levels}")
    check_text(json.dumps(schema, ensure_ascii=False), param)


def check_text(text: str, param: str) -> None:
    """Raise ApiError for half of a surrogate pair, which JSON can spell."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        refuse(param, f"wanted whole Unicode characters, got {text[error.start]!r}")
