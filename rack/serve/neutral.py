"""Parameters that this server does not do, and the values of them that ask for nothing.

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
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True,),
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
    "prompt_cache_key": (),
    "safety_identifier": (),
}
TEXT: Neutral = _BOTH | {
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (),
    "suffix": ("",),
}

# vLLM's; BOS and the place of the answer are always the model's own.
TOKENIZE: Neutral = {
    "add_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "return_token_strs": (False,),
}

# What a client's own copy of an assistant's message may carry besides its text.
MESSAGE: Neutral = {
    "name": (),
    "tool_calls": ([],),
    "tool_call_id": (),
    "function_call": (),
    "refusal": (),
    "audio": (),
    "annotations": ([],),
    "reasoning": (),
    "executed_tools": ([],),
}


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
