"""Parameters that this server does not support, and their values that ask for nothing.

SDKs and frameworks send many at their neutral default (`n: 1`), which is accepted; so is null.
Anything else is refused with a 400 that names the parameter, never ignored.
"""

from __future__ import annotations

import json
from typing import Any

from rack.serve.errors import ApiError

Neutral = dict[str, tuple[Any, ...]]

_BOTH: Neutral = {
    "n": (1,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "metadata": ({},),
    "store": (False,),
}
CHAT: Neutral = _BOTH | {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "disable_tool_validation": (False,),
    "reasoning_effort": (),
    "reasoning_format": (),
    "include_reasoning": (),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "verbosity": (),
    "web_search_options": (),
    "search_settings": (),
    "compound_custom": (),
    "citation_options": (),
    "documents": ([],),
    "include_domains": ([],),
    "exclude_domains": ([],),
}
TEXT: Neutral = _BOTH | {
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (),
    "suffix": ("",),
}
# Of the first seven Groq says that its /responses does not do them.
RESPONSES: Neutral = {
    "previous_response_id": (),
    "store": (False,),
    "truncation": ("disabled",),
    "include": ([],),
    "safety_identifier": (),
    "prompt_cache_key": (),
    "prompt": (),
    "conversation": (),
    "background": (False,),
    "background_options": (),
    "max_tool_calls": (),
    "top_logprobs": (0,),
    "stream_options": ({}, {"include_obfuscation": False}),
    "context_management": ([],),
    "moderation": (),
    "access_programs": (),
    "image": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}

# vLLM's; BOS and the place of the answer are always the model's own.
TOKENIZE: Neutral = {
    "add_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "return_token_strs": (False,),
}

# What a client's own copy of a message may carry besides what is read.
MESSAGE: Neutral = {
    "function_call": (),
    "refusal": (),
    "audio": (),
}
NO_CALLS: Neutral = {"tool_calls": ([],), "tool_call_id": ()}
"""In messages that neither make calls nor answer them."""

ECHOED = frozenset(
    {
        *("reasoning", "reasoning_content", "reasoning_details", "thinking_blocks"),
        *("annotations", "executed_tools", "images", "provider_specific_fields"),
    }
)
"""Parts of an answer that clients send back with it, and that no model is told."""


def drop_from_messages(messages: Any) -> None:
    """Take what asks for nothing out of a chat. Raises ApiError."""
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        role, where = message.get("role"), f"messages[{number}]."
        drop_neutral(message, MESSAGE, where)
        if role in ("system", "developer", "user"):
            drop_neutral(message, NO_CALLS, where)
        for name in ECHOED:
            if name in message and (role == "assistant" or not message[name]):
                del message[name]


def drop_neutral(data: dict[str, Any], neutral: Neutral, where: str = "") -> None:
    """Take parameters out of `data` that ask for nothing. Raises ApiError for those that do."""
    for name in [name for name in neutral if name in data]:
        value, allowed = data.pop(name), neutral[name]
        if value is None or any(_same(value, one) for one in allowed):
            continue
        only = f" but for {' or '.join(map(json.dumps, allowed))}" if allowed else ""
        raise ApiError(
            400, f"`{where}{name}` is not supported by this server{only}; leave it out",
            code="unsupported_parameter", param=where + name,
        )  # fmt: skip


def _same(value: Any, neutral: Any) -> bool:
    """Compare as JSON does: true is not 1, but 0.0 is 0."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
