"""/tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import Any

from rack.chat_template import PromptError
from rack.serve.bodies import DetokenizeRequest, TokenizeRequest
from rack.serve.chats import chat_of, offered_tools
from rack.serve.errors import ApiError
from rack.serve.identity import Identity
from rack.serve.neutral import TOKENIZE
from rack.serve.schemas import validate
from rack.tools import Tools, chat_tokens


def tokenize(body: bytes, identity: Identity) -> dict[str, Any]:
    """Return the token ids of a prompt or a chat. Raises ApiError."""
    request = validate(TokenizeRequest, body, TOKENIZE)
    if request.model is not None:
        identity.check_model(request.model)
    tokenizer = identity.prepared.tokenizer
    param = "messages" if request.prompt is None else "prompt"
    try:
        if request.messages is not None:
            offered = offered_tools(request.tools or ())
            tools = Tools(offered=offered) if offered else None
            ids = chat_tokens(tokenizer, chat_of(request.messages), tools)
        else:
            ids = tokenizer.encode(request.prompt or "")
    except PromptError as error:
        raise ApiError(400, str(error), param=param) from None
    limit = identity.prepared.compiled.max_model_len
    return {"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": None}


def detokenize(body: bytes, identity: Identity) -> dict[str, Any]:
    """Return the text of token ids; special tokens have none. Raises ApiError."""
    request = validate(DetokenizeRequest, body)
    if request.model is not None:
        identity.check_model(request.model)
    try:
        return {"prompt": identity.prepared.tokenizer.decode(request.tokens)}
    except PromptError as error:
        raise ApiError(400, str(error), param="tokens") from None
