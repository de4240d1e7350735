"""Request bodies: what is accepted, and that everything else is refused by name."""

import json
from typing import Any

import pytest

from rack.serve.errors import ApiError
from rack.serve.neutral import CHAT as NEUTRAL_CHAT
from rack.serve.neutral import ECHOED, MESSAGE, NO_CALLS
from rack.serve.neutral import TEXT as NEUTRAL_TEXT
from rack.serve.schemas import Parsed, parse_chat, parse_text
from rack.text.sampler import SamplingParams
from rack.text.tools import Tool, Tools

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "m", "prompt": "hi"}


def parsed_chat(**extra: Any) -> Parsed:
    return parse_chat(json.dumps(CHAT | extra).encode(), 7)


def deep(levels: int) -> dict[str, Any]:
    """Return a schema of so many levels."""
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


def refusal(body: bytes | dict[str, Any], parse: Any = parse_chat) -> ApiError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ApiError) as caught:
        parse(raw, 7)
    assert caught.value.status == 400
    return caught.value


def test_defaults() -> None:
    assert parsed_chat().params == SamplingParams(temperature=1.0, seed=7)
    text = parse_text(json.dumps(TEXT).encode(), 7)
    assert text.params.max_tokens == 16
    assert (text.messages, text.prompts, text.stream) == (None, ("hi",), False)
    assert (text.seed, text.service_tier, text.limit_param) == (7, "on_demand", "max_tokens")


def test_everything_given() -> None:
    got = parsed_chat(
        temperature=0, top_p=0.5, top_k=5, seed=3, stop="a", max_completion_tokens=9, min_tokens=2,
        ignore_eos=True, stream=True, stream_options={"include_usage": True}, user="me",
        service_tier="on_demand", max_tokens=9,
    )  # fmt: skip
    assert got.params == SamplingParams(
        temperature=0.0, top_p=0.5, top_k=5, seed=3, stop=("a",), max_tokens=9, min_tokens=2,
        ignore_eos=True,
    )  # fmt: skip
    assert got.stream
    assert got.include_usage


def test_null_is_not_given() -> None:
    names = ("temperature", "top_p", "seed", "stop", "stream", "stream_options", "max_tokens", "n")
    assert parsed_chat(**dict.fromkeys(names)) == parsed_chat()


def test_no_top_k_in_the_way_of_vllm() -> None:
    assert parsed_chat(top_k=-1).params.top_k == 0


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = parsed_chat(messages=[{"role": "system", "content": parts}]).messages
    assert messages == ({"role": "system", "content": "ab"},)


@pytest.mark.parametrize("name", sorted(NEUTRAL_CHAT))
def test_chat_neutral_values_only(name: str) -> None:
    for value in (None, *NEUTRAL_CHAT[name]):
        assert parsed_chat(**{name: value}) == parsed_chat()
    error = refusal(CHAT | {name: "something"})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert error.message.startswith(f"`{name}` is not supported by this server")


@pytest.mark.parametrize("name", sorted(NEUTRAL_TEXT))
def test_text_neutral_values_only(name: str) -> None:
    for value in (None, *NEUTRAL_TEXT[name]):
        assert parse_text(json.dumps(TEXT | {name: value}).encode(), 7).prompts == ("hi",)
    assert refusal(TEXT | {name: "something"}, parse_text).param == name


def test_true_is_not_one() -> None:
    assert refusal(CHAT | {"n": True}).param == "n"


@pytest.mark.parametrize(
    ("extra", "param", "message"),
    [
        ({"speed": 1}, "speed", "unknown parameter `speed`"),
        ({"model": None}, "model", "model: Input should be a valid string"),
        ({"temperature": 3}, "temperature", "temperature: wanted a number from 0 to 2, got 3.0"),
        ({"stream": 1}, "stream", "stream: Input should be a valid boolean"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens: wanted 1 or more, got 0"),
        ({"stop": ["a"] * 5}, "stop", "stop: wanted up to 4 strings, none empty"),
        ({"seed": 1 << 64}, "seed", "seed: wanted an integer in -2^63..2^64-1, got 184467440737"),
        ({"seed": -(1 << 63) - 1}, "seed", "seed: wanted an integer in -2^63..2^64-1, got -92233"),
        ({"seed": 1.5}, "seed", "seed: Input should be a valid integer"),
        ({"stop": 5}, "stop", "stop: Input should be a valid string"),
        ({"stop": ["a", 5]}, "stop[1]", "stop[1]: Input should be a valid string"),
        ({"max_completion_tokens": 0}, "max_completion_tokens",
         "max_completion_tokens: wanted 1 or more, got 0"),
        ({"top_p": -0.1}, "top_p", "top_p: wanted a number above 0, at most 1, got -0.1"),
        ({"service_tier": "gold"}, "service_tier", "service_tier: Input should be 'auto', "),
        ({"stream_options": {}}, "stream_options", "stream_options: only with stream: true"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens",
         "max_tokens: 1 differs from max_completion_tokens 2; give one of them"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "messages[0].content[0].type", "messages[0].content[0].type: Input should be 'text'"),
        ({"messages": [{"role": "user", "content": [
            {"type": "text", "text": "a", "cache_control": {}}]}]},
         "messages[0].content[0].cache_control",
         "unknown parameter `messages[0].content[0].cache_control`"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content",
         "messages[0].content: Input should be a valid string"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content",
         "messages[0].content: Input should be a valid string"),
        ({"messages": [{"role": "user"}]}, "messages[0].content",
         "messages[0].content: Field required"),
        ({"messages": [{"role": "user", "content": "a", "odd": 1}]}, "messages[0].odd",
         "unknown parameter `messages[0].odd`"),
        ({"messages": [{"role": "user", "content": "a", "reasoning": "b"}]},
         "messages[0].reasoning", "unknown parameter `messages[0].reasoning`"),
        ({"messages": [{"role": "function", "content": "a", "name": "f"}]}, "messages[0].role",
         "messages[0].role: wanted one of 'system', 'developer', 'user', 'assistant', 'tool', got "
         "'function'"),
        ({"messages": [{"content": "a"}]}, "messages[0].role",
         "messages[0].role: Unable to extract tag"),
        ({"messages": ["a"]}, "messages[0]", "messages[0]: Input should be a valid dictionary"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].tool_call_id",
         "messages[0].tool_call_id: Field required"),
    ],
)  # fmt: skip
def test_refused_by_name(extra: dict[str, Any], param: str, message: str) -> None:
    error = refusal(CHAT | extra)
    assert error.param == param
    assert error.message.startswith(message)


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "strict": True}},
            {"type": "object"},
        ),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}, {}),
    ],
)
def test_response_format(given: Any, schema: Any) -> None:
    assert parsed_chat(response_format=given).schema == schema


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format"),
        ({"type": "text", "json_schema": {"name": "x"}}, "response_format"),
        ({"type": "json_schema", "json_schema": {}}, "response_format.json_schema.name"),
        ("json", "response_format"),
    ],
)
def test_response_format_refused(given: Any, param: str) -> None:
    assert refusal(CHAT | {"response_format": given}).param == param


@pytest.mark.parametrize("name", sorted(MESSAGE | NO_CALLS))
def test_neutral_values_in_messages(name: str) -> None:
    plain = {"role": "user", "content": "hi"}
    for value in (None, *(MESSAGE | NO_CALLS)[name]):
        assert parsed_chat(messages=[plain | {name: value}]) == parsed_chat()
    error = refusal(CHAT | {"messages": [plain | {name: "something"}]})
    assert (error.param, error.code) == (f"messages[0].{name}", "unsupported_parameter")


def test_what_clients_send_back_with_an_answer_is_not_read() -> None:
    answer = {"role": "assistant", "content": "a"}
    echo = {"refusal": None, "audio": None, "function_call": None, "tool_calls": None}
    more = dict.fromkeys(ECHOED, "anything") | {"annotations": [{"type": "url_citation"}]}
    assert chatted(answer | echo | more) == ({"role": "assistant", "content": "a"},)
    assert chatted(answer | {"name": None, "tool_calls": []}) == (answer,)


def chatted(*messages: dict[str, Any]) -> Any:
    return parsed_chat(messages=list(messages)).messages


def test_an_assistants_content_may_be_missing() -> None:
    for content in ({"content": None}, {}, {"content": ""}, {"content": []}):
        assert chatted({"role": "assistant", **content}) == ({"role": "assistant", "content": ""},)


def test_developers_speak_as_the_system_and_names_are_kept() -> None:
    assert chatted({"role": "developer", "content": "a", "name": "b"}) == (
        {"role": "system", "content": "a", "name": "b"},
    )


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}


def test_calls_and_their_results() -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "r"}]}
    for call in (CALL, CALL | {"index": 0}, {k: v for k, v in CALL.items() if k != "type"}):
        assert chatted(CALLING | {"tool_calls": [call]}, result | {"name": "f"}) == (
            CALLING,
            {"role": "tool", "content": "r", "name": "f", "tool_call_id": "c1"},
        )


@pytest.mark.parametrize(
    ("messages", "param", "message"),
    [
        ([{"role": "tool", "tool_call_id": "c1", "content": "r"}, CALLING],
         "messages[0].tool_call_id",
         "messages[0].tool_call_id: a tool message must answer an earlier assistant message's "
         "tool_calls; wanted one of their ids (none), got 'c1'"),
        ([CALLING, {"role": "tool", "tool_call_id": "c2", "content": "r"}],
         "messages[1].tool_call_id",
         "messages[1].tool_call_id: a tool message must answer an earlier assistant message's "
         "tool_calls; wanted one of their ids ('c1'), got 'c2'"),
        ([CALLING | {"tool_calls": [CALL | {"type": "custom"}]}], "messages[0].tool_calls[0].type",
         "messages[0].tool_calls[0].type: Input should be 'function'"),
        ([CALLING | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": {}}}]}],
         "messages[0].tool_calls[0].function.arguments",
         "messages[0].tool_calls[0].function.arguments: Input should be a valid string"),
    ],
)  # fmt: skip
def test_wrong_calls_in_the_history(messages: Any, param: str, message: str) -> None:
    error = refusal(CHAT | {"messages": messages})
    assert (error.param, error.message) == (param, message)


def tool(name: str = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def offered(**extra: Any) -> Tools | None:
    return parsed_chat(tools=[tool("f"), tool("g", description="d")], **extra).tools


def test_tools() -> None:
    f = Tool(name="f", param="tools[0].function.parameters")
    g = Tool(name="g", description="d", param="tools[1].function.parameters")
    plain = Tools(offered=(f, g))
    assert offered() == offered(tool_choice="auto") == offered(tool_choice=None) == plain
    assert offered(parallel_tool_calls=False) == Tools(offered=(f, g), parallel=False)
    assert offered(tool_choice="required") == Tools(offered=(f, g), required=True)
    named = {"type": "function", "function": {"name": "g"}}
    assert offered(tool_choice=named) == Tools(offered=(f, g), required=True, named="g")
    assert offered(tool_choice="none") is None
    for nothing in ([], None):
        extra = {"tool_choice": "auto", "parallel_tool_calls": True}
        assert parsed_chat(tools=nothing, **extra).tools is None


@pytest.mark.parametrize(
    ("extra", "param", "message"),
    [
        ({"tools": [tool("a b")]}, "tools[0].function.name",
         "tools[0].function.name: String should match pattern"),
        ({"tools": [tool("a\n")]}, "tools[0].function.name", "tools[0].function.name: String sh"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name", "tools[0].function.name: String"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name",
         "tools[1].function.name: wanted a name of its own, got 'f' again"),
        ({"tools": [tool(str(n)) for n in range(129)]}, "tools",
         "tools: List should have at most 128 items"),
        ({"tools": [{"type": "browser_search"}]}, "tools[0].type",
         "tools[0].type: Input should be 'function'"),
        ({"tools": [{"type": "function"}]}, "tools[0].function",
         "tools[0].function: Field required"),
        ({"tools": [tool() | {"type": "custom"}]}, "tools[0].type",
         "tools[0].type: Input should be 'function'"),
        ({"tools": [tool(parameters=True)]}, "tools[0].function.parameters",
         "tools[0].function.parameters: Input should be a valid dictionary"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters",
         "tools[0].function.parameters: wanted the schema of an object, got the type 'string'"),
        ({"tools": [tool(parameters={"type": ["string"]})]}, "tools[0].function.parameters",
         "tools[0].function.parameters: wanted the schema of an object, got the type ['string']"),
        ({"tools": [tool(parameters=deep(101))]}, "tools[0].function.parameters",
         "tools[0].function.parameters: wanted a schema of at most 100 levels, got 101"),
        ({"tools": [tool(parameters={"required": ["a\ud800"]})]}, "tools[0].function.parameters",
         "tools[0].function.parameters: wanted whole Unicode characters, got '\\ud800'"),
        ({"tools": [tool(description="\udfff")]}, "tools[0].function.description",
         "tools[0].function.description: wanted whole Unicode characters, got '\\udfff'"),
        ({"tools": [tool(odd=1)]}, "tools[0].function.odd",
         "unknown parameter `tools[0].function.odd`"),
        ({"tool_choice": "required"}, "tool_choice", "tool_choice: only with tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": []},
         "tool_choice", "tool_choice: only with tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [tool()]},
         "tool_choice.function.name",
         "tool_choice.function.name: wanted one of the tools (f), got 'g'"),
        ({"tool_choice": "any", "tools": [tool()]}, "tool_choice", "tool_choice: Input should be"),
        ({"tool_choice": {"type": "function"}, "tools": [tool()]}, "tool_choice.function",
         "tool_choice.function: Field required"),
        ({"tools": [tool()], "response_format": {"type": "json_object"}}, "response_format",
         "response_format: json_object cannot be combined with tools"),
        ({"functions": [{"name": "f"}]}, "functions", "`functions` is not supported by this"),
        ({"function_call": {"name": "f"}}, "function_call", "`function_call` is not supported"),
        ({"response_format": {"type": "json_schema",
                              "json_schema": {"name": "x", "schema": deep(101)}}},
         "response_format.json_schema.schema",
         "response_format.json_schema.schema: wanted a schema of at most 100 levels, got 101"),
    ],
)  # fmt: skip
def test_tools_refused(extra: dict[str, Any], param: str, message: str) -> None:
    error = refusal(CHAT | extra)
    assert error.param == param
    assert error.message.startswith(message)


def test_a_format_may_stand_beside_tools_that_are_not_called() -> None:
    format_ = {"type": "json_object"}
    got = parsed_chat(tools=[tool()], tool_choice="none", response_format=format_)
    assert (got.tools, got.schema) == (None, {"type": "object"})


def test_whole_numbers_may_be_written_as_floats() -> None:
    got = parsed_chat(seed=1.0, max_tokens=8.0, top_k=3.0, min_tokens=2.0, temperature=1)
    assert got == parsed_chat(seed=1, max_tokens=8, top_k=3, min_tokens=2)
    assert parsed_chat(max_completion_tokens=8.0).params.max_tokens == 8
    assert parse_text(json.dumps(TEXT | {"prompt": [1.0, 2]}).encode(), 7).prompts == ([1, 2],)


def test_negative_seeds_are_taken_modulo_2_to_the_64() -> None:
    for seed in (-1, -(1 << 63), (1 << 64) - 1):
        got = parsed_chat(seed=seed)
        assert (got.seed, got.params.seed) == (seed, seed % (1 << 64))


def test_top_p_0_is_greedy() -> None:
    assert parsed_chat(top_p=0).params == SamplingParams(temperature=0.0, seed=7)
    assert refusal(CHAT | {"top_p": 0, "temperature": 3}).param == "temperature"


def test_service_tiers() -> None:
    for tier in ("default", "on_demand", "flex", "performance", "priority"):
        assert parsed_chat(service_tier=tier).service_tier == tier
    assert parsed_chat(service_tier="auto").service_tier == "on_demand"


def test_what_has_no_effect_is_taken() -> None:
    extra = {"user": "a", "safety_identifier": "b", "prompt_cache_key": "c"}
    options = {"include_obfuscation": False}
    assert parsed_chat(**extra) == parsed_chat()
    assert parsed_chat(stream=True, stream_options=options) == parsed_chat(stream=True)


def test_the_limit_is_named_as_it_was_given() -> None:
    assert parsed_chat(max_tokens=3).limit_param == "max_tokens"
    assert parsed_chat(max_completion_tokens=3).limit_param == "max_completion_tokens"


def test_several_prompts() -> None:
    def prompts(prompt: Any) -> Any:
        return parse_text(json.dumps(TEXT | {"prompt": prompt}).encode(), 7).prompts

    assert prompts(["a", "b"]) == ("a", "b")
    assert prompts([[1, 2], "b"]) == ([1, 2], "b")
    assert prompts([1, 2]) == ([1, 2],)
    for wrong in ([1, True], ["a", 1], [[1], [None]], {}, 5):
        error = refusal(TEXT | {"prompt": wrong}, parse_text)
        assert error.message == "prompt: wanted a string or a list of token ids"
    for empty in ("", [], [""], ["a", ""], [[]]):
        error = refusal(TEXT | {"prompt": empty}, parse_text)
        assert error.message == "prompt: wanted some text or token ids, got none"
    error = refusal(TEXT | {"prompt": ["a"] * 129}, parse_text)
    assert error.message == "prompt: wanted up to 128 prompts, got 129"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not valid JSON: Expecting property name"),
        (b"\xff", "the body is not valid JSON: "),
        (b"[" * 100_000, "the body is not valid JSON: "),
        (b'{"temperature": NaN}', "the body is not valid JSON: NaN is not a JSON number"),
        (b"[]", "the body: wanted a JSON object, got list"),
    ],
)
def test_malformed(body: bytes, message: str) -> None:
    assert refusal(body).message.startswith(message)
