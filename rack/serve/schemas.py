"""Request bodies: every documented parameter is done here, or refused with a 400 that names it.

A parameter that is not implemented yet is accepted at its neutral default (`n: 1`), because SDKs
and frameworks send those; null always means "not given". `temperature` defaults to 1 and a text
completion's `max_tokens` to 16, as OpenAI documents. `seed` defaults to the server's `--seed`, not
to a random one: the same request gives the same answer. A negative seed is taken modulo 2^64;
`top_p` 0 leaves only the likeliest token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from rack.errors import RequestError
from rack.serve.bodies import LEAST_SEED, SEEDS, Body, ChatRequest, Request, Sampled, TextRequest
from rack.serve.chats import SCHEMA_PARAM, chat_of, check_schema, tools_of
from rack.serve.errors import ApiError, refuse
from rack.serve.neutral import CHAT, TEXT, Neutral, drop_from_messages, drop_neutral
from rack.text.grammar import Schema
from rack.text.sampler import SamplingParams
from rack.text.tools import Tools

COMPLETION_MAX_TOKENS = 16
ON_DEMAND = "on_demand"


R = TypeVar("R", bound=Body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A checked request: `messages` for a chat, `prompts` otherwise."""

    model: str
    messages: tuple[Mapping[str, Any], ...] | None
    prompts: tuple[str | Sequence[int], ...]
    params: SamplingParams
    stream: bool
    include_usage: bool
    continuous_usage: bool
    seed: int  # as it was given; `params` has it as the sampler takes it
    service_tier: str
    text_param: str  # by which names the prompt and max_tokens were given
    limit_param: str = "max_tokens"
    tools: Tools | None = None
    schema: Schema | None = None  # of the answer
    request: Body | None = None  # as it was sent, where the answer repeats it


def parse_chat(body: bytes, default_seed: int) -> Parsed:
    """Read a chat completion request. Raises ApiError."""
    request = validate(ChatRequest, body, CHAT)
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        refuse("max_tokens", f"{old} differs from max_completion_tokens {new}; give one of them")
    limit_param = "max_tokens" if new is None else "max_completion_tokens"
    format_ = request.response_format
    schema = None if format_ is None else format_.schema_of_answer()
    if schema is not None:
        check_schema(schema, SCHEMA_PARAM)
    return Parsed(
        messages=chat_of(request.messages), prompts=(), text_param="messages",
        tools=tools_of(request), schema=schema,
        params=sampling(request, old if new is None else new, default_seed, limit_param),
        limit_param=limit_param, **_common(request, default_seed),
    )  # fmt: skip


def parse_text(body: bytes, default_seed: int) -> Parsed:
    """Read a text completion request. Raises ApiError."""
    request = validate(TextRequest, body, TEXT)
    limit = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    return Parsed(
        messages=None, prompts=tuple(request.prompt), text_param="prompt",
        params=sampling(request, limit, default_seed), **_common(request, default_seed),
    )  # fmt: skip


def _common(request: Request, default_seed: int) -> dict[str, Any]:
    """Return the fields of Parsed that chats and text completions share."""
    options, tier = request.stream_options, request.service_tier
    if options is not None and not request.stream:
        refuse("stream_options", "only with stream: true")
    return {
        "model": request.model,
        "stream": bool(request.stream),
        "include_usage": bool(options and options.include_usage),
        "continuous_usage": bool(options and options.continuous_usage_stats),
        "seed": default_seed if request.seed is None else request.seed,
        "service_tier": ON_DEMAND if tier in (None, "auto") else tier,
    }


def sampling(
    request: Sampled, max_tokens: int | None, default_seed: int, limit_param: str = "max_tokens"
) -> SamplingParams:
    """Return how a request's tokens are chosen. Raises ApiError."""
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    top_k = 0 if request.top_k == -1 else request.top_k  # vLLM's way to say no limit
    temperature = 1.0 if request.temperature is None else request.temperature
    top_p = 1.0 if request.top_p is None else request.top_p
    if top_p == 0.0:  # what is left of all tokens is the likeliest
        temperature, top_p = 0.0 if 0.0 <= temperature <= 2.0 else temperature, 1.0
    seed = default_seed if request.seed is None else request.seed
    if not LEAST_SEED <= seed < SEEDS:
        refuse("seed", f"wanted an integer in -2^63..2^64-1, got {seed}")
    try:
        return SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k or 0,
            seed=seed % SEEDS,
            max_tokens=max_tokens,
            min_tokens=request.min_tokens or 0,
            ignore_eos=bool(request.ignore_eos),
            stop=tuple(stop),
        )
    except RequestError as error:
        param = limit_param if error.param == "max_tokens" else error.param
        refuse(param, f"wanted {error.wanted}, got {error.got}")


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
    drop_from_messages(data.get("messages"))
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _refusal(error, data) from None


def _refusal(error: ValidationError, data: Any) -> ApiError:
    """Turn pydantic's most particular finding into a 400 that names the parameter."""
    found = [(_path(one["loc"], data, one["type"]), one) for one in error.errors(include_url=False)]
    path, first = max(found, key=lambda one: len(one[0]))  # of unions, the kind that fits best
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown parameter `{param}`", code="unknown_parameter", param=param)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_invalid":
        message = f"wanted one of {first['ctx']['expected_tags']}, got {first['ctx']['tag']!r}"
    return ApiError(400, f"{param or 'the body'}: {message}", param=param or None)


def _path(loc: tuple[int | str, ...], data: Any, kind: str) -> list[int | str]:
    """Return what of a finding's place the client wrote; pydantic adds the kinds that it tried."""
    path: list[int | str] = []
    for number, part in enumerate(loc):
        last = kind == "missing" and number == len(loc) - 1
        if isinstance(data, dict) and (part in data or last):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        path.append(part)
    return [*path, "role"] if kind.startswith("union_tag") else path
