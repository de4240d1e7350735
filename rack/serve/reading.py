"""From a request's body to what a rack is given: parsed, rendered, tokenized.

Plain functions of a `Desk` and a body, without an event loop: `reader` runs them here where that is
quick, and in a process of its own where a body or a template could take long.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rack.serve.bodies import DetokenizeRequest, TokenizeRequest
from rack.serve.chats import chat_of, offered_tools
from rack.serve.errors import ApiError, refuse
from rack.serve.neutral import TOKENIZE
from rack.serve.schemas import Parsed, validate
from rack.text.chat_template import PromptError
from rack.text.tokens import Tokenizer
from rack.text.tools import Tools, chat_text

R = TypeVar("R")
LONG_TEXT = 16 << 10  # characters; fewer are encoded in milliseconds
Parse = Callable[[bytes, int], Parsed]
"""A body and the default seed to a request, such as `schemas.parse_chat`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What requests are read with. `advice` says what would raise the context."""

    tokenizer: Tokenizer
    context: int
    seed: int
    advice: str


def attempt(function: Callable[..., R], desk: Desk, body: bytes, *args: Any) -> R:
    """Return what a function of this module makes of a body. Raises ApiError."""
    try:
        return function(desk, body, *args)
    except RecursionError:
        raise ApiError(400, "the body: wanted less deeply nested JSON") from None


def read_prompts(desk: Desk, body: bytes, parse: Parse) -> tuple[Parsed, Sequence[Sequence[int]]]:
    """Read a request for a completion, and its prompts as ids; their text is left out.

    Of a chat the last message's role is kept. Raises ApiError.
    """
    parsed = parse(body, desk.seed)
    asked, param = parsed.params.max_tokens, parsed.text_param
    if asked is not None and asked > desk.context:
        refuse(
            parsed.limit_param, f"{asked} is more than the context of {desk.context}; {desk.advice}"
        )
    if parsed.messages is not None and not parsed.messages:
        refuse(param, "wanted at least one message, got none")
    try:
        prompts = _prompts(desk, parsed)
    except PromptError as error:
        raise ApiError(400, str(error), param=param) from None
    for tokens in prompts:
        if len(tokens) >= desk.context:
            raise _too_long(desk, param, f"{len(tokens)} tokens")
    last = None if parsed.messages is None else ({"role": parsed.messages[-1]["role"]},)
    return replace(parsed, messages=last, prompts=()), [_packed(tokens) for tokens in prompts]


def _prompts(desk: Desk, parsed: Parsed) -> list[Sequence[int]]:
    tokenizer = desk.tokenizer
    if parsed.messages is not None:
        text = chat_text(tokenizer.template, parsed.messages, parsed.tools)
        return [_encoded(desk, text, parsed.text_param, tokenizer.encode_chat)]
    return [
        _encoded(desk, prompt, parsed.text_param, tokenizer.encode)
        if isinstance(prompt, str)
        else prompt
        for prompt in parsed.prompts
    ]


def _encoded(
    desk: Desk, text: str, param: str, encode: Callable[[str], Sequence[int]]
) -> Sequence[int]:
    """Encode a text, but not one that is too long whatever its tokens are. Raises ApiError."""
    if len(text) > LONG_TEXT:  # a short one is encoded, so that its tokens can be told
        fewest = desk.tokenizer.fewest_tokens(text)
        if fewest >= desk.context:
            raise _too_long(desk, param, f"at least {fewest} tokens")
    return encode(text)


def _too_long(desk: Desk, param: str, what: str) -> ApiError:
    return ApiError(
        400, f"{param}: {what} leave no room in the context of {desk.context}; {desk.advice}",
        code="context_length_exceeded", param=param,
    )  # fmt: skip


def _packed(tokens: Sequence[int]) -> Sequence[int]:
    """Return ids in the form that is quick to hand to another process, where they have one."""
    try:
        return array("I", tokens)
    except OverflowError:  # no model has such ids; whoever checks them says so
        return tokens


def tokenize(desk: Desk, body: bytes) -> tuple[str | None, Sequence[int]]:
    """Return the model that is named and the ids of a prompt or a chat. Raises ApiError."""
    request = validate(TokenizeRequest, body, TOKENIZE)
    param = "messages" if request.prompt is None else "prompt"
    try:
        if request.messages is not None:
            offered = offered_tools(request.tools or ())
            tools = Tools(offered=offered) if offered else None
            text = chat_text(desk.tokenizer.template, chat_of(request.messages), tools)
            ids = desk.tokenizer.encode_chat(text)
        else:
            ids = desk.tokenizer.encode(request.prompt or "")
    except PromptError as error:
        raise ApiError(400, str(error), param=param) from None
    return request.model, _packed(ids)


def detokenize(desk: Desk, body: bytes) -> tuple[str | None, str]:
    """Return the model that is named and the text of token ids. Raises ApiError."""
    request = validate(DetokenizeRequest, body)
    try:
        return request.model, desk.tokenizer.decode(request.tokens)
    except PromptError as error:
        raise ApiError(400, str(error), param="tokens") from None
