"""From the body of POST /responses to a chat, and from the chat's errors back to its words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rack.serve.bodies import ChatRequest, FunctionTool, NamedTool, ResponseFormat
from rack.serve.chats import SCHEMA_PARAM, check_schema, tools_of
from rack.serve.errors import ApiError, refuse
from rack.serve.neutral import RESPONSES
from rack.serve.responses_api.bodies import (
    FunctionCall,
    FunctionCallOutput,
    InputMessage,
    Reasoning,
    ResponsesRequest,
    ResponseToolChoice,
)
from rack.serve.schemas import Parsed, sampling, validate
from rack.text.tools import Tools

_LIMIT = "max_output_tokens"
_CHAT_ROLES = {"developer": "system"}
_AS_SENT = {
    "messages": "input",
    "prompt": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}  # fmt: skip
"""How the chat's parameters begin, and this request's."""


def parse_responses(body: bytes, default_seed: int) -> tuple[ResponsesRequest, Parsed]:
    """Read a request, and the chat that it stands for. Raises ApiError."""
    request = validate(ResponsesRequest, body, RESPONSES)
    try:
        return request, _chat(request, default_seed)
    except ApiError as error:
        raise as_sent(error) from None


def parse_request(body: bytes, default_seed: int) -> Parsed:
    """Read a request as a chat that carries what its answer repeats. Raises ApiError."""
    request, parsed = parse_responses(body, default_seed)
    return replace(parsed, request=request.model_copy(update={"input": []}))


def asked_of(parsed: Parsed) -> ResponsesRequest:
    """Return the request that `parse_request` has read."""
    assert isinstance(parsed.request, ResponsesRequest)
    return parsed.request


def _chat(request: ResponsesRequest, default_seed: int) -> Parsed:
    schema = None if (format_ := request.format) is None else format_.schema_of_answer()
    if schema is not None:
        check_schema(schema, SCHEMA_PARAM)
    return Parsed(
        model=request.model, messages=_messages(request), prompts=(), tools=_tools(request),
        schema=schema, text_param="input", limit_param=_LIMIT,
        params=sampling(request, request.max_output_tokens, default_seed, _LIMIT),
        stream=bool(request.stream), include_usage=False, continuous_usage=False,
        seed=default_seed if request.seed is None else request.seed,
        service_tier=request.service_tier or "auto",
    )  # fmt: skip


def _tools(request: ResponsesRequest) -> Tools | None:
    """Return what may or must be called, as a chat with these functions has it."""
    asked, format_ = request.tool_choice, request.format
    tools = [
        FunctionTool.model_construct(type="function", function=tool) for tool in request.tools or ()
    ]
    choice: NamedTool | str | None
    if isinstance(asked, ResponseToolChoice):
        function = {"name": asked.name}
        choice = NamedTool.model_validate({"type": "function", "function": function})
    else:
        choice = asked
    chat = ChatRequest.model_construct(
        tools=tools, tool_choice=choice, parallel_tool_calls=request.parallel_tool_calls,
        response_format=format_ and ResponseFormat.model_construct(type=format_.type),
    )  # fmt: skip
    return tools_of(chat)


def _messages(request: ResponsesRequest) -> tuple[dict[str, Any], ...]:
    """Return the chat: the instructions, then what the items say.

    Calls belong to the answer that they came with: its text is the item right before them.
    Raises ApiError for a result of a call that was not made.
    """
    out: list[dict[str, Any]] = []
    calls: list[str] = []
    if request.instructions is not None:
        out.append({"role": "system", "content": request.instructions})
    for number, item in enumerate(request.input):
        match item:
            case InputMessage():
                role = _CHAT_ROLES.get(item.role, item.role)
                out.append({"role": role, "content": item.text})
            case FunctionCall():
                if not out or out[-1]["role"] != "assistant":
                    out.append({"role": "assistant", "content": None})
                out[-1].setdefault("tool_calls", []).append(_call(item))
                calls.append(item.call_id)
            case FunctionCallOutput():
                if item.call_id not in calls:
                    wanted = " or ".join(["the call_id of an earlier function_call", *calls])
                    refuse(f"input[{number}].call_id", f"wanted {wanted}, got {item.call_id!r}")
                out.append({"role": "tool", "tool_call_id": item.call_id, "content": item.text})
            case Reasoning():
                pass
    return tuple(out)


def _call(item: FunctionCall) -> dict[str, Any]:
    function = {"name": item.name, "arguments": item.arguments}
    return {"id": item.call_id, "type": "function", "function": function}


def as_sent(error: ApiError) -> ApiError:
    """Return an error of the chat in the words of this request: `input` for `messages`."""
    if error.param is None:
        return error
    param = error.param.replace(".function", "")
    for chats, ours in _AS_SENT.items():
        if param == chats or param.startswith((f"{chats}.", f"{chats}[")):
            param = ours + param.removeprefix(chats)
            break
    message = error.message
    if message.startswith(f"{error.param}:"):
        message = param + message.removeprefix(error.param)
    return ApiError(
        error.status, message, kind=error.kind, code=error.code, param=param,
        headers=error.headers,
    )  # fmt: skip
