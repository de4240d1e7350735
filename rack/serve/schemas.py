"""Request bodies: every documented parameter is done here, or refused with a 400 that names it.

A parameter that is not implemented yet is accepted at its neutral default (`n: 1`), because SDKs
and frameworks send those; null always means "not given". `temperature` defaults to 1 and a text
completion's `max_tokens` to 16, as OpenAI documents. `seed` defaults to the server's `--seed`, not
to a random one: the same request gives the same answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from rack.errors import RequestError
from rack.sampler import SamplingParams
from rack.serve.bodies import Body, ChatRequest, Request, TextRequest
from rack.serve.errors import ApiError
from rack.serve.neutral import CHAT, MESSAGE, TEXT, Neutral, drop_neutral

COMPLETION_MAX_TOKENS = 16


R = TypeVar("R", bound=Body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A checked request: `messages` for a chat, `prompt` otherwise."""

    model: str
    messages: tuple[Mapping[str, Any], ...] | None
    prompt: str | Sequence[int]
    params: SamplingParams
    stream: bool
    include_usage: bool
    continuous_usage: bool


def parse_chat(body: bytes, default_seed: int) -> Parsed:
    """Read a chat completion request. Raises ApiError."""
    request = validate(ChatRequest, body, CHAT)
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        _refuse("max_tokens", f"{old} differs from max_completion_tokens {new}; give one of them")
    format_ = request.response_format
    params = _params(
        request, old if new is None else new, default_seed,
        json_schema=None if format_ is None else format_.schema_text(),
    )  # fmt: skip
    messages = tuple({"role": m.role, "content": m.content} for m in request.messages)
    return _parsed(request, params, messages=messages, prompt="")


def parse_text(body: bytes, default_seed: int) -> Parsed:
    """Read a text completion request. Raises ApiError."""
    request = validate(TextRequest, body, TEXT)
    limit = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    params = _params(request, limit, default_seed)
    return _parsed(request, params, messages=None, prompt=request.prompt)


def _parsed(
    request: Request, params: SamplingParams, *,
    messages: tuple[Mapping[str, Any], ...] | None, prompt: str | Sequence[int],
) -> Parsed:  # fmt: skip
    options = request.stream_options
    if options is not None and not request.stream:
        _refuse("stream_options", "only with stream: true")
    return Parsed(
        model=request.model, messages=messages, prompt=prompt, params=params,
        stream=bool(request.stream), include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
    )  # fmt: skip


def _params(
    request: Request, max_tokens: int | None, default_seed: int, json_schema: str | None = None
) -> SamplingParams:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    top_k = 0 if request.top_k == -1 else request.top_k  # vLLM's way to say no limit
    try:
        return SamplingParams(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            top_k=top_k or 0,
            seed=default_seed if request.seed is None else request.seed,
            max_tokens=max_tokens,
            min_tokens=request.min_tokens or 0,
            ignore_eos=bool(request.ignore_eos),
            stop=tuple(stop),
            json_schema=json_schema,
        )
    except RequestError as error:
        raise ApiError(400, str(error), param=error.param) from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"the body: wanted a JSON object, got {type(value).__name__}")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def validate(kind: type[R], body: bytes, neutral: Neutral | None = None) -> R:
    """Read a body as a model. Raises ApiError (400), which names the parameter."""
    data = _object(body)
    drop_neutral(data, neutral or {})
    messages = data.get("messages")
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            drop_neutral(message, MESSAGE, f"messages.{number}.")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> ApiError:
    """Turn pydantic's first finding into a 400 that names the parameter."""
    first = error.errors(include_url=False)[0]
    param = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown parameter `{param}`", code="unknown_parameter", param=param)
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param or 'the body'}: {message}", param=param or None)


def _refuse(param: str, why: str) -> NoReturn:
    raise ApiError(400, f"{param}: {why}", param=param)
