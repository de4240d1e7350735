"""The bodies of answers as the OpenAPI document shows them; `responses` makes the real ones.

Tests check every answer against these models, so document and server agree.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PromptTokensDetails(_Answer):
    """Of the prompt's tokens, those that were found in the cache and not run again."""

    cached_tokens: int


class Usage(_Answer):
    """Tokens, and emulated seconds; total_time leaves the queue out."""

    queue_time: float
    prompt_tokens: int
    prompt_tokens_details: PromptTokensDetails
    prompt_time: float
    completion_tokens: int
    completion_time: float
    total_tokens: int
    total_time: float


class XGroqUsage(_Answer):
    """Of the prompt's tokens, those that were found in SRAM."""

    sram_cached_tokens: int


class XGroq(_Answer):
    """GroqCloud's own part; `usage` with a prefix cache alone."""

    id: str
    seed: int
    usage: XGroqUsage | None = Field(default=None, exclude_if=lambda usage: usage is None)


class Recovery(_Answer):
    """A fault after which the rack went on; `chips` were replaced, `chip` is the first of them.

    `replayed_cycles` are emulated, and no part of the answer's times. The seconds are wall time:
    from the lost chip's last sign of life to the error, and from there until the rack went on.
    `schedule_hash`: of the schedule from then on, where the spares have other cables.
    """

    chip: int | None
    chips: list[int]
    step: str
    detected_seconds: float
    replayed_cycles: int
    wall_seconds: float
    schedule_hash: str | None


class XRack(BaseModel):
    """What made the answer: executor, weights, exact cycles, wall seconds, lost pace, faults.

    `waited_seconds` is emulated, and a part of the answer's times: other sequences held the rack.
    """

    executor: str
    pace: str
    sequences: int
    batch: int
    prefix_cache: bool
    tokens: Literal["model", "random"]
    weights: Literal["real", "synthetic", "synthetic, repeated"]
    layers: str  # "all", or how many of how many
    schedule_hash: str
    data_hash: str | None
    emulated_cycles: dict[str, int]
    waited_seconds: float
    wall_seconds: dict[str, float]
    slipped_seconds: dict[str, float] | None
    recoveries: list[Recovery]


class ReplyFunction(_Answer):
    """What is called; the arguments are JSON text."""

    name: str
    arguments: str


class ReplyCall(_Answer):
    """A call that the client is to make."""

    id: str
    type: Literal["function"]
    function: ReplyFunction


class Reply(_Answer):
    """The answer of a chat: text, calls of functions, or both."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[ReplyCall] = Field(default_factory=list, exclude_if=lambda calls: not calls)


class ChatChoice(_Answer):
    """The only choice of a chat."""

    index: Literal[0]
    message: Reply
    logprobs: None
    finish_reason: Literal["stop", "length", "tool_calls"]


class TextChoice(_Answer):
    """What continues one of the prompts."""

    index: int
    text: str
    logprobs: None
    finish_reason: Literal["stop", "length"]


class _Completion(_Answer):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage
    service_tier: Literal["default", "on_demand", "flex", "performance", "priority"]
    x_groq: XGroq
    x_rack: XRack


class ChatCompletion(_Completion):
    """Answer of POST /chat/completions; with `stream`, its chunks are `chat.completion.chunk`."""

    object: Literal["chat.completion"]
    choices: tuple[ChatChoice]


class TextCompletion(_Completion):
    """Answer of POST /completions."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class Model(_Answer):
    """A name that the server answers to."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    active: bool
    context_window: int
    max_completion_tokens: int
    public_apps: None


class Models(_Answer):
    """All names."""

    object: Literal["list"]
    data: list[Model]


class Tokens(_Answer):
    """Answer of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: None


class Text(_Answer):
    """Answer of POST /detokenize."""

    prompt: str


class Status(_Answer):
    """Answer of GET /health."""

    status: Literal["ok"]


class Ready(_Answer):
    """Answer of GET /health/ready: what each rack is at, "ready" for one at least."""

    status: Literal["ready"]
    racks: list[str]


class Version(BaseModel):
    """Answer of GET /version: the marks that answers carry under x_rack."""

    version: str
    system_fingerprint: str
    executor: str
    schedule_hash: str
    notices: list[str]


class Error(_Answer):
    """What was wrong, and with which parameter."""

    message: str
    type: str
    code: str | None
    param: str | None


class ErrorBody(_Answer):
    """Any refusal or failure."""

    error: Error
